//! A disk that several hosts reach, each by a path of its own that can fail: as a LUN of an array.
//!
//! Below each host's loop device lies a file of a small FUSE file system, which this process serves. What a host writes is
//! in its path's cache, as in that of a disk, until it is synced; then it is on the disk, where the others see it. A host that
//! loses its power loses what is in the cache, and reaches the disk no more. A path that only fails or hangs loses nothing: what it has
//! taken is the disk's.
//!
//! A path that hangs holds whoever uses it in the kernel, beyond the reach of signals. So no thread of this process ever
//! reads or writes through a path, and a path that is dropped is aborted (`/sys/fs/fuse/connections`): then everything on it fails.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::clock;
use crate::disk::{LoopDevice, memory};
use crate::error::{Context, LabError};
use crate::host::Host;
use crate::namespace::Namespaces;

/// Unit of the cache.
const BLOCK: usize = 4096;
/// A cache with so many blocks is written out: 64 MB.
const MOST_BLOCKS: usize = 16 << 10;
/// Between two looks of [`MountWatch`].
const LOOK: Duration = Duration::from_millis(2);
/// Where `/sys/fs/fuse/connections` is mounted, in the disk's own mount namespace.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it should be.
    Well,
    /// Everything fails (EIO).
    Fails,
    /// Nothing is answered until it is another way.
    Hangs,
    /// Everything takes so much longer.
    Slow(Duration),
}

/// The disk. Dropped: all of its paths are aborted.
#[derive(Debug)]
pub struct Lun {
    paths: Arc<Mutex<BTreeMap<String, LunPath>>>,
    /// Those that hosts had before they lost their power: a file system may still be mounted from them.
    former: Vec<LunPath>,
    disk: Arc<File>,
    bytes: u64,
    place: Namespaces,
}

impl Lun {
    /// One with so many bytes, that nobody reaches yet.
    ///
    /// # Errors
    /// The failed system call's: it needs root, and a kernel with FUSE.
    pub fn new(bytes: u64) -> Result<Lun, LabError> {
        let disk = memory(bytes).context(|| "get memory for a disk".into())?;
        let place = Namespaces::create("lab-lun")?;
        let kind = Some("fusectl");
        let none: Option<&str> = None;
        place
            .enter(|| mount(kind, CONNECTIONS, kind, MsFlags::empty(), none))?
            .context(|| format!("mount {CONNECTIONS}"))?;
        let (paths, former) = Default::default();
        Ok(Lun { paths, former, disk: Arc::new(disk), bytes, place })
    }

    /// Makes an ext4 file system on it, before anybody reaches it.
    ///
    /// # Errors
    /// When `mkfs.ext4` fails.
    pub fn format(&self) -> Result<(), LabError> {
        let device = LoopDevice::over(&self.disk)?;
        // With blocks of another size, the kernel would keep some of a device's contents from one mount to the next, though
        // another host has written there meanwhile.
        let options = ["-q", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"];
        let made = Command::new("mkfs.ext4").args(options).arg(device.path()).output();
        let made = made.context(|| "start mkfs.ext4".into())?;
        if made.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()))
            .context(|| "mkfs.ext4".into())
    }

    /// Gives a host a path, whose device `link` leads to in the host. An earlier one stays as it was left, and so does what is mounted
    /// from it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect(&mut self, host: &Host, link: &str) -> Result<(), LabError> {
        let path = LunPath::new(&self.place, self.disk.clone(), self.bytes)?;
        let device = path.device.path().to_owned();
        host.enter(|| {
            Path::new(link).parent().map_or(Ok(()), fs::create_dir_all)?;
            let _ = fs::remove_file(link); // most often there is none
            std::os::unix::fs::symlink(&device, link)
        })?
        .context(|| format!("make {link} in {}", host.name()))?;
        let former = self.lock().insert(host.name().to_owned(), path);
        self.former.extend(former);
        self.former.retain(|path| path.in_use().exists());
        Ok(())
    }

    /// Makes a host's path be this way from now on.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn set(&self, host: &str, way: Way) -> Result<(), LabError> {
        self.on_path(host, |path| path.cache.set(way))
    }

    /// From one moment to the next nothing that the host wants of the disk is done or answered, and what it has not synced is lost: it is
    /// losing its power. [`Lun::lose`] lets go of what waits.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn freeze(&self, host: &str) -> Result<(), LabError> {
        self.on_path(host, |path| path.cache.part(Way::Hangs)).map(drop)
    }

    /// From one moment to the next the host reaches the disk no more, and what it has not synced is lost. Returns how many bytes were.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn lose(&self, host: &str) -> Result<usize, LabError> {
        self.on_path(host, |path| path.cache.part(Way::Fails))
    }

    /// The device of a host's path.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn device(&self, host: &str) -> Result<PathBuf, LabError> {
        self.on_path(host, |path| path.device.path().to_owned())
    }

    /// The hosts that have a file system mounted from it, in whatever mount namespace, and can still write to it. The kernel knows.
    pub fn users(&self) -> Vec<String> {
        users(&self.lock())
    }

    /// Watches from now on that it is never mounted by two hosts.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn watch(&self) -> Result<MountWatch, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (paths, stopped) = (self.paths.clone(), stop.clone());
        let thread = thread::Builder::new().name("lab-mounts".into()).spawn(move || {
            let (mut looked, mut doubles) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let users = users(&paths.lock().unwrap_or_else(PoisonError::into_inner));
                looked += 1;
                if users.len() > 1 {
                    doubles.push((clock::now(), users));
                }
                thread::sleep(LOOK);
            }
            (looked, doubles)
        });
        Ok(MountWatch { stop, thread: Some(thread.context(|| "start a thread".into())?) })
    }

    /// No path hangs any more: whoever unmounts what is on them must not hang either.
    pub fn unhang(&self) {
        self.lock().values().chain(&self.former).for_each(|path| path.cache.unhang());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LunPath>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_path<T>(&self, host: &str, work: impl FnOnce(&LunPath) -> T) -> Result<T, LabError> {
        let unknown = || LabError::Unknown { lab: "a disk".to_owned(), what: format!("path of {host}") };
        self.lock().get(host).map(work).ok_or_else(unknown)
    }
}

fn users(paths: &BTreeMap<String, LunPath>) -> Vec<String> {
    let uses = |path: &LunPath| !path.cache.lock().lost && path.in_use().exists();
    paths.iter().filter(|(_, path)| uses(path)).map(|(host, _)| host.clone()).collect()
}

/// A running watch of [`Lun::watch`].
#[derive(Debug)]
pub struct MountWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u64, Vec<Double>)>>,
}

/// When several hosts had it mounted, and which.
pub type Double = (Duration, Vec<String>);

impl MountWatch {
    /// Ends it. Returns how often it looked, and when several hosts had it mounted.
    pub fn finish(mut self) -> (u64, Vec<Double>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for MountWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A host's path.
#[derive(Debug)]
struct LunPath {
    cache: Arc<Cache>,
    abort: File,
    server: Option<JoinHandle<io::Result<()>>>,
    device: LoopDevice,
}

impl LunPath {
    fn new(place: &Namespaces, disk: Arc<File>, bytes: u64) -> Result<LunPath, LabError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let point = PathBuf::from(format!("/run/lun-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        let cache = Arc::new(Cache { disk, bytes, state: Mutex::default(), changed: Condvar::new() });
        let connection = place.enter(|| attach(&point))?.context(|| "mount FUSE".into())?;
        let served = Served(cache.clone());
        let session = Session::from_fd(served, connection, SessionACL::All, fuser::Config::default());
        let session = session.context(|| "speak FUSE".into())?;
        let thread = thread::Builder::new().name("lab-lun".into()).spawn(move || session.run());
        let server = Some(thread.context(|| "start a thread".into())?);
        let (abort, file) = place.enter(|| open(&point))?.context(|| "open a FUSE file".into())?;
        match LoopDevice::direct(&file) {
            Ok(device) => Ok(LunPath { cache, abort, server, device }),
            Err(error) => {
                let _ = (&abort).write_all(b"1"); // the first error is told
                Err(error)
            }
        }
    }

    /// Exists while an ext4 file system is mounted from it.
    fn in_use(&self) -> PathBuf {
        Path::new("/sys/fs/ext4").join(self.device.path().file_name().unwrap_or_default())
    }
}

impl Drop for LunPath {
    fn drop(&mut self) {
        self.cache.set(Way::Fails); // whatever hangs goes on, and fails
        // The kernel does it when this process ends, if it can't be done now.
        if (&self.abort).write_all(b"1").is_ok() {
            let _ = self.server.take().map(JoinHandle::join);
        }
    }
}

/// Mounts a FUSE file system that is a single file.
fn attach(point: &Path) -> io::Result<OwnedFd> {
    File::create(point)?;
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=100000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("lab-lun"), point, Some("fuse.lab-lun"), safe, Some(options.as_str()))?;
    Ok(device.into())
}

/// Opens it, and that which ends it; and takes the mount away, which nobody needs any more.
fn open(point: &Path) -> io::Result<(File, File)> {
    let number = libc::minor(fs::metadata(point)?.dev());
    let abort = OpenOptions::new().write(true).open(format!("{CONNECTIONS}/{number}/abort"))?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(point);
    umount2(point, MntFlags::MNT_DETACH)?;
    fs::remove_file(point)?;
    Ok((abort, file?))
}

/// A path's cache, and its way.
#[derive(Debug)]
struct Cache {
    disk: Arc<File>,
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// For good.
    lost: bool,
    /// What is written and not synced, by number of block.
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Default for State {
    fn default() -> Self {
        State { way: Way::Well, lost: false, blocks: BTreeMap::new() }
    }
}

/// What is to be done, or why it can't be.
type Job = Box<dyn FnOnce(Result<(&Cache, &mut State), Errno>) + Send>;

impl Cache {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, way: Way) {
        let mut state = self.lock();
        if state.lost {
            if way == Way::Fails {
                state.way = way;
            }
        } else {
            if matches!(way, Way::Fails | Way::Hangs) {
                // What it has taken must not come back one day, over what was written by another path meanwhile. Memory takes it.
                let _ = self.sync(&mut state);
            }
            state.way = way;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn unhang(&self) {
        let hangs = self.lock().way == Way::Hangs;
        if hangs {
            self.set(Way::Fails);
        }
    }

    /// For good. Returns how many bytes are lost.
    fn part(&self, way: Way) -> usize {
        let mut state = self.lock();
        (state.lost, state.way) = (true, way);
        let blocks = std::mem::take(&mut state.blocks).len();
        drop(state);
        self.changed.notify_all();
        blocks * BLOCK
    }

    /// Does it as the path's way is; what has to wait does so on a thread of its own, for others may not have to.
    fn run(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        let slow = match state.way {
            Way::Well => return job(Ok((self, &mut state))),
            Way::Fails => return job(Err(Errno::EIO)),
            Way::Hangs => Duration::ZERO,
            Way::Slow(time) => time,
        };
        drop(state);
        let cache = self.clone();
        let waiting = thread::Builder::new().name("lab-lun-wait".into());
        // Where no thread can be made, the request is left without an answer, as one that hangs.
        let _ = waiting.spawn(move || {
            thread::sleep(slow);
            let hangs = |state: &mut State| state.way == Way::Hangs;
            let state = cache.changed.wait_while(cache.lock(), hangs);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            match state.way {
                Way::Fails => job(Err(Errno::EIO)),
                Way::Well | Way::Slow(_) | Way::Hangs => job(Ok((&cache, &mut state))),
            }
        });
    }

    fn read(&self, state: &State, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        let size = size.min(self.bytes.saturating_sub(offset) as usize);
        let mut data = vec![0; size];
        self.disk.read_exact_at(&mut data, offset)?;
        let block = BLOCK as u64;
        for (number, contents) in state.blocks.range(offset / block..(offset + size as u64).div_ceil(block)) {
            let start = number * block;
            let (from, to) = (start.max(offset), (start + block).min(offset + size as u64));
            data[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&contents[(from - start) as usize..(to - start) as usize]);
        }
        Ok(data)
    }

    fn write(&self, state: &mut State, offset: u64, data: &[u8]) -> io::Result<u32> {
        let block = BLOCK as u64;
        let end = (offset + data.len() as u64).min(self.bytes);
        let mut at = offset;
        while at < end {
            let (number, within) = (at / block, (at % block) as usize);
            let length = (BLOCK - within).min((end - at) as usize);
            if !state.blocks.contains_key(&number) {
                let mut before = self.read(state, number * block, BLOCK)?;
                before.resize(BLOCK, 0);
                state.blocks.insert(number, before.into());
            }
            if let Some(contents) = state.blocks.get_mut(&number) {
                let from = (at - offset) as usize;
                contents[within..within + length].copy_from_slice(&data[from..from + length]);
            }
            at += length as u64;
        }
        if state.blocks.len() >= MOST_BLOCKS {
            self.sync(state)?;
        }
        Ok(end.saturating_sub(offset) as u32)
    }

    fn sync(&self, state: &mut State) -> io::Result<()> {
        while let Some((number, contents)) = state.blocks.pop_first() {
            let start = number * BLOCK as u64;
            let length = BLOCK.min(self.bytes.saturating_sub(start) as usize);
            self.disk.write_all_at(&contents[..length], start)?;
        }
        Ok(())
    }

    fn attributes(&self) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.bytes,
            blocks: self.bytes / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

/// What FUSE asks.
#[derive(Debug)]
struct Served(Arc<Cache>);

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Filesystem for Served {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(3600), &self.0.attributes());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.run(Box::new(move |place| {
            let (cache, state) = match place {
                Ok(place) => place,
                Err(error) => return reply.error(error),
            };
            match cache.read(state, offset, size as usize) {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(&error)),
            }
        }));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.0.run(Box::new(move |place| {
            let (cache, state) = match place {
                Ok(place) => place,
                Err(error) => return reply.error(error),
            };
            match cache.write(state, offset, &data) {
                Ok(written) => reply.written(written),
                Err(error) => reply.error(errno(&error)),
            }
        }));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.run(Box::new(move |place| match place.map(|(cache, state)| cache.sync(state)) {
            Ok(Ok(())) => reply.ok(),
            Ok(Err(error)) => reply.error(errno(&error)),
            Err(error) => reply.error(error),
        }));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        // The kernel then writes zeroes.
        reply.error(Errno::EOPNOTSUPP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(bytes: u64) -> Arc<Cache> {
        let disk = Arc::new(memory(bytes).expect("memory"));
        Arc::new(Cache { disk, bytes, state: Mutex::default(), changed: Condvar::new() })
    }

    fn other(cache: &Cache) -> Arc<Cache> {
        let (disk, bytes) = (cache.disk.clone(), cache.bytes);
        Arc::new(Cache { disk, bytes, state: Mutex::default(), changed: Condvar::new() })
    }

    #[test]
    fn what_is_not_synced_is_seen_by_its_writer_alone_and_goes_with_its_power() {
        let one = cache(64 << 10);
        let two = other(&one);
        let read = |c: &Cache, offset, size| c.read(&c.lock(), offset, size).expect("read");
        // Across two blocks, neither of them whole.
        assert_eq!(one.write(&mut one.lock(), 4000, &[7; 200]).expect("written"), 200);
        assert_eq!(read(&one, 3999, 202), [&[0][..], &[7; 200], &[0]].concat());
        assert_eq!(read(&two, 4000, 200), [0; 200]);
        one.sync(&mut one.lock()).expect("synced");
        assert_eq!(read(&two, 3999, 202), [&[0][..], &[7; 200], &[0]].concat());
        one.write(&mut one.lock(), 4100, &[8; 10]).expect("written");
        assert_eq!(one.part(Way::Fails), BLOCK);
        assert_eq!(read(&two, 4100, 10), [7; 10]);
        assert!(one.lock().lost);
    }

    #[test]
    fn a_path_that_is_well_again_takes_back_nothing_of_what_others_wrote() {
        let one = cache(8192);
        let two = other(&one);
        one.write(&mut one.lock(), 0, &[1; 10]).expect("written");
        one.set(Way::Fails);
        two.write(&mut two.lock(), 0, &[2; 10]).expect("written");
        two.sync(&mut two.lock()).expect("synced");
        one.set(Way::Well);
        one.sync(&mut one.lock()).expect("synced");
        assert_eq!(two.read(&two.lock(), 0, 10).expect("read"), [2; 10]);
    }

    #[test]
    fn nothing_is_written_or_read_beyond_the_end() {
        let one = cache(6000);
        assert_eq!(one.write(&mut one.lock(), 5990, &[7; 20]).expect("written"), 10);
        assert_eq!(one.read(&one.lock(), 5990, 20).expect("read"), [7; 10]);
        one.sync(&mut one.lock()).expect("synced");
        assert_eq!(one.disk.metadata().expect("metadata").len(), 6000);
    }
}
