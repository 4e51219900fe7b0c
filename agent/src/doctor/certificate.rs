//! When a certificate expires, and whose it is. Reads as much of X.509 as that takes (RFC 5280, 4.1; X.690, DER), and trusts nothing.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const OBJECT: u8 = 0x06;
const SET: u8 = 0x31;
/// 2.5.4.3 (X.520).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The earliest end of all certificates in a PEM file.
pub(crate) fn expires(pem: &str) -> Result<SystemTime, String> {
    let mut ends = Vec::new();
    let mut rest = pem;
    while let Some((_, from)) = rest.split_once("-----BEGIN CERTIFICATE-----") {
        let (body, after) = from.split_once("-----END CERTIFICATE-----").ok_or("a certificate has no end")?;
        let text: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(text).map_err(|e| format!("a certificate is damaged: {e}"))?;
        ends.push(not_after(&der).ok_or("a certificate can't be understood")?);
        rest = after;
    }
    ends.into_iter().min().ok_or_else(|| "there is no certificate in it".to_owned())
}

/// (tag, content, what follows)
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length, rest) = (*der.first()?, *der.get(1)?, der.get(2..)?);
    let (length, rest) = match length {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let bytes = usize::from(long & 0x7f);
            if bytes == 0 || bytes > 4 {
                return None;
            }
            let length = rest.get(..bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b));
            (length, &rest[bytes..])
        }
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

fn expect(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(der)?;
    (tag == wanted).then_some((content, rest))
}

/// The common name of whom a certificate is for. What it says is shown, and nothing is decided by it.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    let (_, mut subject) = validity_and_subject(der)?;
    while let Some((SET, name, rest)) = element(subject) {
        let (attribute, _) = expect(name, SEQUENCE)?;
        let (kind, value) = expect(attribute, OBJECT)?;
        if kind == COMMON_NAME {
            let (_, text, _) = element(value)?;
            return Some(String::from_utf8_lossy(text).escape_debug().to_string());
        }
        subject = rest;
    }
    None
}

/// The contents of both.
fn validity_and_subject(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, after)) = expect(rest, VERSION) {
        rest = after;
    }
    let (_, rest) = expect(rest, INTEGER)?; // serial number
    let (_, rest) = expect(rest, SEQUENCE)?; // signature algorithm
    let (_, rest) = expect(rest, SEQUENCE)?; // issuer
    let (validity, rest) = expect(rest, SEQUENCE)?;
    let (subject, _) = expect(rest, SEQUENCE)?;
    Some((validity, subject))
}

fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (validity, _) = validity_and_subject(der)?;
    let (_, _, end) = element(validity)?; // from when on it is valid
    let (tag, text, _) = element(end)?;
    let text = std::str::from_utf8(text).ok()?;
    // YYMMDDHHMMSSZ, of 1950 to 2049; or with four digits of the year.
    let full = match tag {
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    if full.len() != 15 || !full.ends_with('Z') || !full[..14].bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| &full[from..to];
    let year: u32 = part(0, 4).parse().ok()?;
    // 9999 says: never. What is before 1970 has long ended.
    if year >= 9999 {
        return Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 2));
    }
    if year < 1970 {
        return Some(SystemTime::UNIX_EPOCH);
    }
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    humantime::parse_rfc3339(&written).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split(' '))
            .args("-keyout k -out c.pem -subj /CN=lab -days 10".split(' '))
            .current_dir(folder.path())
            .output()
            .expect("openssl; `make test` installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let pem = std::fs::read_to_string(folder.path().join("c.pem")).unwrap();
        let left = expires(&pem).unwrap().duration_since(SystemTime::now()).unwrap();
        let days = left.as_secs_f64() / 86_400.0;
        assert!((9.5..10.5).contains(&days), "{days}");
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        assert_eq!(common_name(&STANDARD.decode(body).unwrap()).as_deref(), Some("lab"));
        // The key is no certificate, and half a certificate is none either.
        let key = std::fs::read_to_string(folder.path().join("k")).unwrap();
        assert!(expires(&key).unwrap_err().contains("no certificate"));
        let der = STANDARD.decode(pem.lines().filter(|l| !l.starts_with('-')).collect::<String>()).unwrap();
        for length in 0..der.len() {
            // The signature at the end is not looked at, but everything counts as cut that lacks its end.
            assert_eq!(not_after(&der[..length]), None, "{length}");
        }
        assert!(not_after(&der).is_some());
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for text in [
            "",
            "x",
            "-----BEGIN CERTIFICATE-----",
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
        ] {
            assert!(expires(text).is_err(), "{text}");
        }
        for bytes in [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &[0x30, 0x80], &[0x30, 0x85, 1, 1, 1, 1, 1]]
        {
            assert_eq!((not_after(bytes), common_name(bytes)), (None, None));
        }
    }
}
