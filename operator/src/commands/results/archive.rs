//! A directory of a stranger's volume as a tar archive: files, directories and links as they are, nothing followed, so
//! that no link leads out of the volume and no pipe holds the reader.

use std::{
    fs::{self, File, Metadata, OpenOptions, ReadDir},
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

/// Name of the entry that proves that the archive was opened.
pub(super) const RECEIPT: &str = "leasehold-receipt";
/// Name of the entry that lists what is not in the archive, where something is not.
const LEFT_OUT: &str = "leasehold-left-out";
/// So many names are listed there.
const LEFT_OUT_MAX: usize = 1000;

/// What is archived.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    /// Where the volume is mounted.
    pub(super) volume: PathBuf,
    /// The directory in it; empty for all of it.
    pub(super) path: PathBuf,
    /// Its name in the archive.
    pub(super) name: String,
    /// Most bytes of files in the archive: a sparse file of a stranger may claim more than any disk has.
    pub(super) bytes_max: u64,
}

struct Archive<W: Write> {
    tar: Builder<W>,
    bytes_left: u64,
    left_out: Vec<String>,
}

/// Writes the archive; its last entry is the receipt.
pub(super) fn write<W: Write>(what: &Directory, receipt: &str, to: W) -> io::Result<W> {
    let mut archive = Archive {
        tar: Builder::new(to),
        bytes_left: what.bytes_max,
        left_out: Vec::new(),
    };
    match root(what) {
        Ok(root) => archive.tree(root, Path::new(&what.name))?,
        Err(why) => archive.leave_out(Path::new(&what.name), &why),
    }
    if !archive.left_out.is_empty() {
        let list = archive.left_out.join("\n") + "\n";
        archive.note(LEFT_OUT, list.as_bytes())?;
    }
    archive.note(RECEIPT, receipt.as_bytes())?;
    archive.tar.into_inner()
}

/// The directory, if each step to it is a directory of the volume and no link.
fn root(what: &Directory) -> io::Result<PathBuf> {
    let mut path = what.volume.clone();
    for part in &what.path {
        path.push(part);
        if !fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::Error::other("not a directory"));
        }
    }
    Ok(path)
}

impl<W: Write> Archive<W> {
    /// Depth first, with one open directory a level and no list of names in memory.
    fn tree(&mut self, root: PathBuf, name: &Path) -> io::Result<()> {
        let mut open: Vec<(ReadDir, PathBuf)> = Vec::new();
        let mut next = Some((root, name.to_owned()));
        loop {
            if let Some((path, name)) = next.take()
                && let Some(entries) = self.entry(&path, &name)?
            {
                open.push((entries, name));
            }
            let Some((entries, name)) = open.last_mut() else {
                return Ok(());
            };
            let name = name.clone();
            match entries.next() {
                Some(Ok(entry)) => next = Some((entry.path(), name.join(entry.file_name()))),
                Some(Err(why)) => {
                    self.leave_out(&name, &why);
                    open.pop();
                }
                None => {
                    open.pop();
                }
            }
        }
    }

    /// One entry, and what is in it if it is a directory. What can't be read is left out; only a failure to write ends it.
    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<Option<ReadDir>> {
        let read = fs::symlink_metadata(path).and_then(|found| Found::open(path, found));
        let (found, meta) = match read {
            Ok(found) => found,
            Err(why) => {
                self.leave_out(name, &why);
                return Ok(None);
            }
        };
        match found {
            Found::Directory(entries) => {
                let mut header = header(EntryType::Directory, &meta, 0);
                self.append(&mut header, name, io::empty())?;
                Ok(Some(entries))
            }
            Found::Link(target) => {
                let mut header = header(EntryType::Symlink, &meta, 0);
                if let Err(why) = self.tar.append_link(&mut header, name, &target) {
                    self.leave_out(name, &why);
                }
                Ok(None)
            }
            Found::File(file) if meta.len() <= self.bytes_left => {
                self.bytes_left -= meta.len();
                let mut header = header(EntryType::Regular, &meta, meta.len());
                self.append(&mut header, name, file)?;
                Ok(None)
            }
            Found::File(_) => {
                self.leave_out(name, &io::Error::other("more than the volume's size in all"));
                Ok(None)
            }
        }
    }

    fn append(&mut self, header: &mut Header, name: &Path, data: impl io::Read) -> io::Result<()> {
        self.tar.append_data(header, name, data)
    }

    fn note(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        self.append(&mut header, Path::new(name), text)
    }

    fn leave_out(&mut self, name: &Path, why: &io::Error) {
        if self.left_out.len() < LEFT_OUT_MAX {
            self.left_out.push(format!("{}: {why}", name.display()));
        }
    }
}

/// What a name of the volume stands for.
enum Found {
    Directory(ReadDir),
    File(File),
    Link(PathBuf),
}

impl Found {
    fn open(path: &Path, meta: Metadata) -> io::Result<(Self, Metadata)> {
        let found = if meta.is_dir() {
            Self::Directory(fs::read_dir(path)?)
        } else if meta.is_symlink() {
            Self::Link(fs::read_link(path)?)
        } else if meta.is_file() {
            let mut options = OpenOptions::new();
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            Self::File(options.read(true).custom_flags(flags).open(path)?)
        } else {
            return Err(io::Error::other("neither file, directory nor link"));
        };
        Ok((found, meta))
    }
}

/// Whoever unpacks it owns it: no ids and no set-uid bits of a stranger's.
fn header(kind: EntryType, meta: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(meta.mode() & 0o777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(size);
    header
}
