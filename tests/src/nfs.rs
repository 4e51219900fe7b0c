//! A client of NFS version 3: libnfs, a library in user space (Debian's libnfs13), which is loaded when a client is made. When its
//! connection is gone the export is mounted anew, its files are opened again, and what was not answered is asked again. The
//! library could connect again by itself, but this version of it keeps what it had got of an answer, and takes the first bytes of
//! the new connection for the rest; and it gives up for good when connecting fails, as to an address that nobody has for a while.
//!
//! A client belongs to the thread that made it: its sockets are in that thread's network namespace.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::net::IpAddr;
use std::ptr;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{Context, LabError};

const LIBRARY: &CStr = c"libnfs.so.13";
/// A question that has no answer after so long is asked again: of the server that there is then.
const AGAIN: Duration = Duration::from_secs(5);
/// What the library says of questions when it has no connection any more and makes none.
const GIVEN_UP: &str = "cancelled";
/// After so many time limits in a row nothing is expected of its connection any more.
const MOST_LATE: u32 = 4;
/// Between two tries to mount.
const PAUSE: Duration = Duration::from_millis(50);
/// Time limits of the library are looked at so often.
const TICK_MS: c_int = 50;
/// Most bytes of a read or write.
pub const MOST: usize = 1 << 20;

type Callback = unsafe extern "C" fn(c_int, *mut c_void, *mut c_void, *mut c_void);
type Opaque = *mut c_void;

/// The functions that are used, as in libnfs.h of version 4.
macro_rules! library {
    ($($name:ident: $kind:ty,)*) => {
        struct Library {
            $($name: $kind,)*
        }

        impl Library {
            fn load() -> Result<Library, String> {
                // SAFETY: the name is a string with an end; the library's constructors do nothing of note.
                let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                if handle.is_null() {
                    return Err(format!("{} can't be loaded: apt-get install libnfs13", LIBRARY.to_string_lossy()));
                }
                $(
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the name ends with a zero byte.
                    let $name = unsafe { libc::dlsym(handle, name.as_ptr().cast()) };
                    if $name.is_null() {
                        return Err(format!("{} has no {}", LIBRARY.to_string_lossy(), stringify!($name)));
                    }
                )*
                // SAFETY: in this version of the library the functions are declared so.
                Ok(unsafe { Library { $($name: std::mem::transmute::<*mut c_void, $kind>($name),)* } })
            }
        }
    };
}

library! {
    nfs_init_context: unsafe extern "C" fn() -> Opaque,
    nfs_destroy_context: unsafe extern "C" fn(Opaque),
    nfs_parse_url_dir: unsafe extern "C" fn(Opaque, *const c_char) -> *mut Url,
    nfs_destroy_url: unsafe extern "C" fn(*mut Url),
    nfs_set_timeout: unsafe extern "C" fn(Opaque, c_int),
    nfs_get_error: unsafe extern "C" fn(Opaque) -> *const c_char,
    nfs_get_fd: unsafe extern "C" fn(Opaque) -> c_int,
    nfs_which_events: unsafe extern "C" fn(Opaque) -> c_int,
    nfs_service: unsafe extern "C" fn(Opaque, c_int) -> c_int,
    nfs_mount_async: unsafe extern "C" fn(Opaque, *const c_char, *const c_char, Callback, Opaque) -> c_int,
    nfs_creat_async: unsafe extern "C" fn(Opaque, *const c_char, c_int, Callback, Opaque) -> c_int,
    nfs_open_async: unsafe extern "C" fn(Opaque, *const c_char, c_int, Callback, Opaque) -> c_int,
    nfs_close_async: unsafe extern "C" fn(Opaque, Opaque, Callback, Opaque) -> c_int,
    nfs_pread_async: unsafe extern "C" fn(Opaque, Opaque, u64, u64, Callback, Opaque) -> c_int,
    nfs_pwrite_async: unsafe extern "C" fn(Opaque, Opaque, u64, u64, *const c_void, Callback, Opaque) -> c_int,
    nfs_fsync_async: unsafe extern "C" fn(Opaque, Opaque, Callback, Opaque) -> c_int,
    nfs_stat64_async: unsafe extern "C" fn(Opaque, *const c_char, Callback, Opaque) -> c_int,
    nfs_unlink_async: unsafe extern "C" fn(Opaque, *const c_char, Callback, Opaque) -> c_int,
}

/// `struct nfs_url`.
#[repr(C)]
struct Url {
    server: *mut c_char,
    path: *mut c_char,
    file: *mut c_char,
}

/// Place of the size among the 64-bit words of `struct nfs_stat_64`.
const SIZE: usize = 7;

fn library() -> Result<&'static Library, LabError> {
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(Library::load);
    loaded.as_ref().map_err(|why| io::Error::other(why.clone())).context(|| "use NFS".into())
}

/// Can a client be made on this machine?
pub fn is_installed() -> bool {
    library().is_ok()
}

/// A mounted export.
#[derive(Debug)]
pub struct NfsClient {
    context: Opaque,
    server: IpAddr,
    export: String,
    /// Path, flags and handle of those that are open.
    files: Vec<Option<(CString, c_int, Opaque)>>,
    limit: Duration,
    /// Questions asked again because nobody answered within five seconds.
    pub asked_again: u64,
    /// How often the library had given up, and the export was mounted anew.
    pub mounted_again: u64,
    /// Something was never answered: the library may still write where it was told to.
    given_up: bool,
}

/// An open file of a client. It is closed by [`NfsClient::close`] alone.
#[derive(Debug)]
pub struct NfsFile(usize);

/// What the library's callback leaves.
struct Answer {
    done: bool,
    status: c_int,
    /// What is handed over, for those that want it.
    pointer: Opaque,
    take: Take,
    bytes: Vec<u8>,
    text: String,
}

/// What is handed over besides the status.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    Nothing,
    Bytes,
    Size,
}

/// Called by [`Library::nfs_service`] alone, on the client's own thread.
unsafe extern "C" fn answered(status: c_int, _: Opaque, data: Opaque, private: Opaque) {
    // SAFETY: it is what [`NfsClient::ask`] handed over, which waits for this, or has leaked it.
    let answer = unsafe { &mut *private.cast::<Answer>() };
    (answer.done, answer.status, answer.pointer) = (true, status, data);
    if status < 0 && !data.is_null() {
        // SAFETY: a failure hands over a text.
        answer.text = unsafe { CStr::from_ptr(data.cast()) }.to_string_lossy().into_owned();
    } else if answer.take == Take::Bytes && status > 0 {
        // SAFETY: a read hands over so many bytes.
        answer.bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), status as usize) }.to_vec();
    } else if answer.take == Take::Size {
        // SAFETY: a `struct nfs_stat_64`, of more words than that.
        let size = unsafe { data.cast::<u64>().add(SIZE).read() };
        answer.bytes = size.to_ne_bytes().to_vec();
    }
}

impl NfsClient {
    /// Mounts an export. Everything that is asked for, this included, is waited for until `limit`.
    ///
    /// # Errors
    /// No library; an answer that is a failure; [`LabError::Timeout`].
    pub fn mount(server: IpAddr, export: &str, limit: Duration) -> Result<NfsClient, LabError> {
        let mut client = NfsClient {
            context: ptr::null_mut(),
            server,
            export: export.to_owned(),
            files: Vec::new(),
            limit,
            asked_again: 0,
            mounted_again: 0,
            given_up: false,
        };
        let begun = Instant::now();
        while let Err(error) = client.connect() {
            if begun.elapsed() >= limit {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
        Ok(client)
    }

    /// Mounts the export with a context of its own.
    fn connect(&mut self) -> Result<(), LabError> {
        let library = library()?;
        self.disconnect();
        // SAFETY: takes nothing.
        self.context = unsafe { (library.nfs_init_context)() };
        if self.context.is_null() {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM)).context(|| "make an NFS client".into());
        }
        let (server, export) = (self.server, &self.export);
        let url =
            text(&format!("nfs://{server}{export}?version=3&nfsport=2049&mountport=20048&autoreconnect=0"))?;
        let (server, export) = (text(&server.to_string())?, text(export)?);
        // SAFETY: the context is new and the text has an end; the URL is only needed for what it sets in the context.
        unsafe {
            let parsed = (library.nfs_parse_url_dir)(self.context, url.as_ptr());
            if parsed.is_null() {
                return Err(io::Error::other(self.complaint())).context(|| "read an NFS URL".into());
            }
            (library.nfs_destroy_url)(parsed);
            (library.nfs_set_timeout)(self.context, AGAIN.as_millis() as c_int);
        }
        self.once("mount", Take::Nothing, None, &|library, context, _, private| {
            // SAFETY: see `once`; the texts live until it returns.
            unsafe { (library.nfs_mount_async)(context, server.as_ptr(), export.as_ptr(), answered, private) }
        })
        .map(drop)
    }

    /// Mounts the export anew, and opens all files again, until it succeeds.
    fn renew(&mut self, end: Duration) -> Result<(), LabError> {
        self.mounted_again += 1;
        loop {
            match self.connect().and_then(|()| self.reopen()) {
                Err(_) if clock::now() < end && !self.given_up => thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    fn reopen(&mut self) -> Result<(), LabError> {
        for index in 0..self.files.len() {
            let Some((name, flags, _)) = self.files[index].clone() else { continue };
            let answer = self.once("open again", Take::Nothing, None, &|library, context, _, private| {
                // SAFETY: see `once`; the text lives until it returns.
                unsafe { (library.nfs_open_async)(context, name.as_ptr(), flags, answered, private) }
            })?;
            self.files[index] = Some((name, flags, answer.pointer));
        }
        Ok(())
    }

    fn keep(&mut self, name: CString, flags: c_int, handle: Opaque) -> NfsFile {
        self.files.push(Some((name, flags, handle)));
        NfsFile(self.files.len() - 1)
    }

    fn disconnect(&mut self) {
        // What was given up is leaked: the library would call back.
        if let Ok(library) = library()
            && !self.given_up
            && !self.context.is_null()
        {
            // SAFETY: nobody has the context any more, and nothing is left to be called back.
            unsafe { (library.nfs_destroy_context)(self.context) };
        }
        self.context = ptr::null_mut();
    }

    /// Makes a file, or empties it.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn create(&mut self, path: &str) -> Result<NfsFile, LabError> {
        let name = text(path)?;
        let answer =
            self.ask(&format!("create {path}"), Take::Nothing, None, |library, context, _, private| {
                // SAFETY: see `ask`; the text lives until it returns.
                unsafe { (library.nfs_creat_async)(context, name.as_ptr(), 0o644, answered, private) }
            })?;
        Ok(self.keep(name, libc::O_RDWR, answer.pointer))
    }

    /// Opens a file with flags of open(2). With `O_SYNC`, each write is answered when it is stable.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn open(&mut self, path: &str, flags: c_int) -> Result<NfsFile, LabError> {
        let name = text(path)?;
        let answer =
            self.ask(&format!("open {path}"), Take::Nothing, None, |library, context, _, private| {
                // SAFETY: see `ask`; the text lives until it returns.
                unsafe { (library.nfs_open_async)(context, name.as_ptr(), flags, answered, private) }
            })?;
        Ok(self.keep(name, flags, answer.pointer))
    }

    /// Closes a file.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn close(&mut self, file: NfsFile) -> Result<(), LabError> {
        let close = |library: &Library, context: Opaque, handle: Opaque, private: Opaque| {
            // SAFETY: see `once`; the file is this client's, and nobody has it any more.
            unsafe { (library.nfs_close_async)(context, handle, answered, private) }
        };
        let closed = self.once("close", Take::Nothing, Some(&file), &close);
        self.files[file.0] = None;
        closed.map(drop)
    }

    /// Reads, less than asked for at the end of the file; [`MOST`] at once.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn read(&mut self, file: &NfsFile, offset: u64, bytes: usize) -> Result<Vec<u8>, LabError> {
        let bytes = bytes.min(MOST) as u64;
        let answer = self.ask(
            &format!("read at {offset}"),
            Take::Bytes,
            Some(file),
            |library, context, file, private| {
                // SAFETY: see `ask`; the file is this client's.
                unsafe { (library.nfs_pread_async)(context, file, offset, bytes, answered, private) }
            },
        )?;
        Ok(answer.bytes)
    }

    /// Writes; [`MOST`] at once. Returns how many bytes were written.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn write(&mut self, file: &NfsFile, offset: u64, data: &[u8]) -> Result<usize, LabError> {
        let (data, bytes) = (data.as_ptr(), data.len().min(MOST) as u64);
        let answer = self.ask(
            &format!("write at {offset}"),
            Take::Nothing,
            Some(file),
            |library, context, file, private| {
                // SAFETY: see `ask`; the file is this client's, and the library copies the bytes before it returns.
                unsafe {
                    (library.nfs_pwrite_async)(context, file, offset, bytes, data.cast(), answered, private)
                }
            },
        )?;
        Ok(answer.status as usize)
    }

    /// Asks that what was written be stable (COMMIT). The library does not look whether the server is still the one that it was
    /// written to, so what another one lost is not told: a ledger needs `O_SYNC`.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn sync(&mut self, file: &NfsFile) -> Result<(), LabError> {
        let answer = self.ask("commit", Take::Nothing, Some(file), |library, context, file, private| {
            // SAFETY: see `ask`; the file is this client's.
            unsafe { (library.nfs_fsync_async)(context, file, answered, private) }
        });
        answer.map(drop)
    }

    /// How long a file is.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn size(&mut self, path: &str) -> Result<u64, LabError> {
        let name = text(path)?;
        let answer =
            self.ask(&format!("stat {path}"), Take::Size, None, |library, context, _, private| {
                // SAFETY: see `ask`; the text lives until it returns.
                unsafe { (library.nfs_stat64_async)(context, name.as_ptr(), answered, private) }
            })?;
        Ok(u64::from_ne_bytes(answer.bytes.try_into().unwrap_or_default()))
    }

    /// Removes a file. One that isn't there is removed: the question may have been asked twice.
    ///
    /// # Errors
    /// As [`NfsClient::mount`].
    pub fn remove(&mut self, path: &str) -> Result<(), LabError> {
        let name = text(path)?;
        let removed =
            self.ask(&format!("remove {path}"), Take::Nothing, None, |library, context, _, private| {
                // SAFETY: see `ask`; the text lives until it returns.
                unsafe { (library.nfs_unlink_async)(context, name.as_ptr(), answered, private) }
            });
        match removed {
            Err(LabError::System { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks, again and again while nobody answers.
    fn ask(
        &mut self,
        what: &str,
        take: Take,
        file: Option<&NfsFile>,
        start: impl Fn(&Library, Opaque, Opaque, Opaque) -> c_int,
    ) -> Result<Answer, LabError> {
        let end = clock::now() + self.limit;
        let mut late = 0;
        loop {
            match self.once(what, take, file, &start) {
                // The library's word for its own time limit, and for what it does not wait for any more.
                Err(LabError::System { what, source })
                    if source.raw_os_error() == Some(libc::EINTR) && clock::now() < end =>
                {
                    self.asked_again += 1;
                    late += 1;
                    if self.context.is_null() || what.contains(GIVEN_UP) || late == MOST_LATE {
                        late = 0;
                        self.renew(end)?;
                    }
                }
                other => return other,
            }
        }
    }

    /// Asks once. What `start` hands to the library must live until the answer is there, and the last argument is what
    /// [`answered`] gets; the one before is the file's handle.
    fn once(
        &mut self,
        what: &str,
        take: Take,
        file: Option<&NfsFile>,
        start: &dyn Fn(&Library, Opaque, Opaque, Opaque) -> c_int,
    ) -> Result<Answer, LabError> {
        let library = library()?;
        if self.given_up || self.context.is_null() {
            let source = io::Error::other("something before was never answered");
            return Err(LabError::System { what: what.to_owned(), source });
        }
        let pointer = ptr::null_mut();
        let text = String::new();
        let answer = Answer { done: false, status: 0, pointer, take, bytes: Vec::new(), text };
        let answer = Box::into_raw(Box::new(answer));
        let end = clock::now() + self.limit;
        let handle =
            file.and_then(|file| self.files[file.0].as_ref()).map_or(pointer, |(.., handle)| *handle);
        let mut started = start(library, self.context, handle, answer.cast());
        // SAFETY: the box is this function's until it is leaked, and the library writes to it in `nfs_service` alone, or in
        // `nfs_destroy_context`.
        while started >= 0 && unsafe { !(*answer).done } {
            started = self.service(library);
            if clock::now() >= end {
                break;
            }
        }
        let complaint = self.complaint();
        if started < 0 {
            self.disconnect(); // which calls back what is not done
        }
        // SAFETY: as above.
        if unsafe { !(*answer).done } && started >= 0 {
            self.given_up = true; // and the box is the library's
            return Err(LabError::Timeout { what: format!("NFS: {what}"), limit: self.limit });
        }
        // SAFETY: as above; the library calls back once, and has no context any more where it has not.
        let answer = unsafe { Box::from_raw(answer) };
        if started < 0 {
            let source = io::Error::from_raw_os_error(libc::EINTR);
            return Err(LabError::System { what: format!("NFS: {what}: {complaint}"), source });
        }
        if answer.status >= 0 {
            return Ok(*answer);
        }
        let source = io::Error::from_raw_os_error(-answer.status);
        Err(LabError::System { what: format!("NFS: {what}: {}", answer.text), source })
    }

    fn service(&self, library: &Library) -> c_int {
        // SAFETY: the context lives, and this is its thread.
        unsafe {
            let (fd, events) = ((library.nfs_get_fd)(self.context), (library.nfs_which_events)(self.context));
            let mut poll = libc::pollfd { fd, events: events as i16, revents: 0 };
            if libc::poll(&raw mut poll, 1, TICK_MS) < 0 {
                poll.revents = 0;
            }
            (library.nfs_service)(self.context, poll.revents.into())
        }
    }

    fn complaint(&self) -> String {
        // SAFETY: the context lives, and the text lives until its next use.
        let text = library().map(|library| unsafe {
            if self.context.is_null() {
                return String::new();
            }
            let text = (library.nfs_get_error)(self.context);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        });
        text.unwrap_or_default()
    }
}

impl Drop for NfsClient {
    fn drop(&mut self) {
        self.disconnect();
    }
}

fn text(text: &str) -> Result<CString, LabError> {
    CString::new(text).map_err(io::Error::from).context(|| format!("write {text:?} for C"))
}
