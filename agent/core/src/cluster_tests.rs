//! Records of the version after this one, and of the one before, are read.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

/// Everything that a record can hold, of each kind.
fn record() -> Record {
    let via = Via {
        segment: "office".into(),
        node: "b".into(),
        incarnation: 4,
        members: 2,
        over: "lab".into(),
        state: ViaState::Answering,
    };
    Record {
        taken_from: Some(("c".into(), 3)),
        released: Some(Release {
            next: Some("b".into()),
            reason: Reason::Drain,
            stopping: Some(Duration::from_millis(7)),
        }),
        via: vec![via],
        failed_on: vec!["c".into()],
        unfenced: vec![("c".into(), 3)],
        ..Record::of("a", 7, 2, 9)
    }
}

fn members() -> Members {
    let member = |name: &str, slot| Member { name: name.into(), slot };
    Members {
        version: 3,
        probe_interval: Duration::from_millis(10),
        lease: Duration::from_millis(50),
        slack: Duration::from_millis(5),
        rho_ppm: 1000,
        nodes: vec![member("a", 0), member("b", 1)],
        before: vec![member("a", 0), member("b", 1), member("c", 2)],
    }
}

fn node() -> NodeRecord {
    let port = NodePort {
        number: 2,
        interface: "eth0".into(),
        segment: "office".into(),
        mac: [2, 0, 0, 0, 0, 1],
        usable: true,
        hears: true,
    };
    NodeRecord {
        incarnation: 7,
        witness: true,
        capacity_percent: 50,
        ports: vec![port],
        lost_units: vec!["array".into()],
        read_since: vec![UnitRead { unit: "tape".into(), node: "fs2".into(), lost_at: Time(2) }],
        // Maps by unit and by virtual server, which have no keys of their own.
        ..NodeRecord::default()
    }
}

/// How many objects there are in a value; that at the place `nth` gets a key that nobody knows.
fn add_unknown(value: &mut Value, nth: usize, seen: &mut usize) {
    match value {
        // A duration, whose form is the language's own and not a version's.
        Value::Object(map) if map.contains_key("nanos") => {}
        Value::Object(map) => {
            let here = *seen == nth;
            *seen += 1;
            map.values_mut().for_each(|v| add_unknown(v, nth, seen));
            if here {
                map.insert("of_a_later_version".into(), json!({ "some": ["thing", 1, null] }));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| add_unknown(v, nth, seen)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn passes_over_what_it_does_not_know<T>(record: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let written = serde_json::to_value(record).unwrap();
    let mut objects = 0;
    add_unknown(&mut written.clone(), usize::MAX, &mut objects);
    assert!(objects > 0);
    for nth in 0..objects {
        let mut value = written.clone();
        add_unknown(&mut value, nth, &mut 0);
        assert_ne!(value, written);
        // As the store holds it: as text.
        let read: T = serde_json::from_str(&value.to_string()).unwrap_or_else(|e| panic!("{value}: {e}"));
        assert_eq!(&read, record, "{value}");
    }
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    passes_over_what_it_does_not_know(&record());
    passes_over_what_it_does_not_know(&members());
    passes_over_what_it_does_not_know(&node());
    passes_over_what_it_does_not_know(&Wish { master: Some(4), ..Wish::administrator("b") });
    // What a node measured is a map by virtual server, which has no keys of its own.
    let load = NodeLoad { other: 4, ..NodeLoad::default() };
    let mut value = serde_json::to_value(&load).unwrap();
    value["of_a_later_version"] = json!(1);
    assert_eq!(serde_json::from_value::<NodeLoad>(value).unwrap(), load);
}

/// What the first version wrote, which had least: word for word.
#[test]
fn what_an_earlier_version_did_not_write_has_its_default() {
    let read: Record = serde_json::from_str(r#"{"node":"a","incarnation":7,"members":2,"epoch":9}"#).unwrap();
    assert_eq!(read, Record::of("a", 7, 2, 9));
    let released = r#"{"node":"a","incarnation":7,"members":2,"epoch":9,"released":{"reason":"drain"}}"#;
    let read: Record = serde_json::from_str(released).unwrap();
    assert_eq!(read.released, Some(Release { next: None, reason: Reason::Drain, stopping: None }));
    let port = r#"{"number":2,"interface":"eth0","segment":"office","mac":[2,0,0,0,0,1],"usable":true}"#;
    let text = format!(r#"{{"incarnation":7,"witness":true,"ports":[{port}]}}"#);
    let read: NodeRecord = serde_json::from_str(&text).unwrap();
    assert_eq!((read.capacity_percent, read.lost_units, read.ports[0].hears), (100, vec![], false));
    let wish: Wish = serde_json::from_str(r#"{"to":"b","reason":"administrator"}"#).unwrap();
    assert_eq!(wish, Wish::administrator("b"));
    let mut value = serde_json::to_value(members()).unwrap();
    value.as_object_mut().unwrap().remove("before");
    assert_eq!(serde_json::from_value::<Members>(value).unwrap(), Members { before: vec![], ..members() });
}

/// A node must not go on thinking that somebody owns a virtual server only because it doesn't know why it was released.
#[test]
fn a_release_for_a_reason_that_nobody_knows_is_a_release() {
    let text = r#"{"node":"a","incarnation":7,"members":2,"epoch":9,"released":{"reason":"of_a_later_version","next":"b"}}"#;
    let read: Record = serde_json::from_str(text).unwrap();
    assert_eq!(read.released.and_then(|r| r.next), Some("b".into()));
    // Whom a wish comes from decides whether it is void: one that nobody knows is none.
    assert!(serde_json::from_str::<Wish>(r#"{"to":"b","reason":"of_a_later_version"}"#).is_err());
}
