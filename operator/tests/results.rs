//! `leasehold-operator results` over a directory as a stranger's job may leave it, fetched over TCP and opened with the
//! reference program of the format.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use leasehold_testcluster::{Stderr, ssh_key};

const PATH: &str = "3f1c0a52-0f5e-4b8e-9a56-6f1f6c1f6a11";
const PATIENCE: Duration = Duration::from_secs(20);
/// So long a reader may take nothing.
const STALLED: Duration = Duration::from_secs(30);

/// A program that is ended with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    /// Open as long as it may write there.
    _log: BufReader<ChildStderr>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(volume: &Path, directory: &str, recipients: &[String], bytes_max: u64) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leasehold-operator"))
            .arg("results")
            .arg(format!("--volume={}", volume.display()))
            .args((!directory.is_empty()).then(|| format!("--directory={directory}")))
            .args(["--name=out", &format!("--path={PATH}")])
            .args(recipients.iter().map(|r| format!("--recipient={r}")))
            .arg(format!("--bytes-max={bytes_max}"))
            .args(["--listen=127.0.0.1:0", "--log-format=json"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = log.by_ref().lines().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).ok()?;
            line["address"].as_str()?.parse().ok()
        });
        let address = address.expect("it says where it listens");
        Self {
            child,
            address,
            _log: log,
        }
    }

    /// Status and body. HTTP/1.0 has the body end with the connection.
    fn ask(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
        (status, answer.split_off(head + 4))
    }

    fn archive(&self) -> Vec<u8> {
        let (status, body) = self.ask("GET", &format!("/{PATH}"));
        assert_eq!(status, 200);
        body
    }

    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }
}

struct Keys {
    age: PathBuf,
    folder: tempfile::TempDir,
}

impl Keys {
    async fn new() -> Self {
        let age = leasehold_testtools::go::age(&Stderr::default()).unwrap();
        Self {
            age,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// File of the private key, and the recipient.
    fn x25519(&self, name: &str) -> (PathBuf, String) {
        let file = self.folder.path().join(name);
        run(Command::new(self.age.join("age-keygen")).arg("-o").arg(&file));
        let recipient = run(Command::new(self.age.join("age-keygen")).arg("-y").arg(&file));
        (file, recipient.trim().to_owned())
    }

    fn ssh(&self, name: &str) -> (PathBuf, String) {
        ssh_key(self.folder.path(), name).unwrap()
    }

    /// The archive, unpacked; or that it can't be opened.
    fn open(&self, archive: &[u8], key: &Path) -> Result<tempfile::TempDir, String> {
        let sealed = self.folder.path().join("sealed");
        fs::write(&sealed, archive).unwrap();
        let opened = Command::new(self.age.join("age"))
            .arg("-d")
            .arg("-i")
            .arg(key)
            .arg(&sealed)
            .output()
            .unwrap();
        if !opened.status.success() {
            return Err(String::from_utf8_lossy(&opened.stderr).into_owned());
        }
        let into = tempfile::tempdir().unwrap();
        let tar = self.folder.path().join("tar");
        fs::write(&tar, opened.stdout).unwrap();
        run(Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(into.path()));
        Ok(into)
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn what_a_job_left_is_fetched_by_its_tenant_alone_and_then_gone() {
    let keys = Keys::new().await;
    let (mine, recipient) = keys.x25519("mine");
    let (ssh, ssh_recipient) = keys.ssh("ssh");
    let (strangers, _) = keys.x25519("stranger");
    let volume = tempfile::tempdir().unwrap();
    let out = volume.path().join("a/out");
    fs::create_dir_all(out.join("deep/er")).unwrap();
    // More than a chunk, exactly a chunk, nothing.
    let large: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(out.join("model"), &large).unwrap();
    fs::write(out.join("deep/er/chunk"), &large[..65_536]).unwrap();
    fs::write(out.join("deep/empty"), b"").unwrap();
    let long = "n".repeat(200);
    fs::write(out.join(&long), b"long").unwrap();
    symlink("model", out.join("latest")).unwrap();
    symlink("/etc", out.join("outside")).unwrap();
    run(Command::new("mkfifo").arg(out.join("pipe")));
    fs::write(volume.path().join("a/private"), b"not asked for").unwrap();
    let sparse = fs::File::create(out.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();

    let mut server = Server::start(volume.path(), "a/out", &[recipient, ssh_recipient], 1 << 30);
    let archive = server.archive();
    for key in [&mine, &ssh] {
        let opened = keys.open(&archive, key).unwrap();
        let at = |name: &str| opened.path().join(name);
        assert_eq!(fs::read(at("out/model")).unwrap(), large);
        assert_eq!(fs::read(at("out/deep/er/chunk")).unwrap(), large[..65_536]);
        assert_eq!(fs::read(at("out/deep/empty")).unwrap(), b"");
        assert_eq!(fs::read(at("out").join(&long)).unwrap(), b"long");
        assert_eq!(fs::read_link(at("out/latest")).unwrap(), Path::new("model"));
        assert_eq!(
            fs::read_link(at("out/outside")).unwrap(),
            Path::new("/etc"),
            "as it is, not followed"
        );
        assert!(!at("out/pipe").exists() && !at("out/sparse").exists());
        assert!(!at("private").exists() && !at("out/private").exists());
        let left_out = fs::read_to_string(at("leasehold-left-out")).unwrap();
        assert!(
            left_out.contains("out/pipe") && left_out.contains("out/sparse"),
            "{left_out}"
        );
    }
    let opened = keys.open(&archive, &mine).unwrap();
    let receipt = fs::read_to_string(opened.path().join("leasehold-receipt")).unwrap();
    assert_eq!(receipt.len(), 64);

    // A stranger reads nothing, finds nothing, ends nothing.
    assert!(keys.open(&archive, &strangers).is_err());
    assert!(!archive.windows(64).any(|w| w == receipt.as_bytes()));
    assert_eq!(server.ask("GET", "/").0, 404);
    assert_eq!(server.ask("GET", &format!("/{PATH}x")).0, 404);
    assert_eq!(server.ask("DELETE", &format!("/{PATH}")).0, 405);
    for guess in ["0".repeat(64), receipt[..63].to_owned(), format!("{receipt}0")] {
        assert_eq!(
            server.ask("DELETE", &format!("/{PATH}/{guess}")).0,
            403,
            "{guess}"
        );
    }
    // Cut short or touched on the way, it does not pass for whole.
    assert!(keys.open(&archive[..archive.len() - 70_000], &mine).is_err());
    let mut touched = archive.clone();
    let last = touched.len() - 1;
    touched[last] ^= 1;
    assert!(keys.open(&touched, &mine).is_err());

    assert_eq!(server.ask("DELETE", &format!("/{PATH}/{receipt}")).0, 200);
    assert!(server.ended().success());
}

#[tokio::test]
async fn no_link_leads_out_and_a_directory_that_is_missing_is_said_to_be() {
    let keys = Keys::new().await;
    let (mine, recipient) = keys.x25519("mine");
    let volume = tempfile::tempdir().unwrap();
    symlink("/etc", volume.path().join("link")).unwrap();
    fs::create_dir(volume.path().join("real")).unwrap();
    symlink("../link", volume.path().join("real/link")).unwrap();
    for directory in ["link", "real/link", "nowhere", "link/ssl"] {
        let server = Server::start(
            volume.path(),
            directory,
            std::slice::from_ref(&recipient),
            1 << 20,
        );
        let opened = keys.open(&server.archive(), &mine).unwrap();
        let mut names: Vec<_> = fs::read_dir(opened.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["leasehold-left-out", "leasehold-receipt"], "{directory}");
    }
}

#[tokio::test]
async fn no_more_than_four_hold_it_and_a_signal_is_no_receipt() {
    let keys = Keys::new().await;
    let (_, recipient) = keys.x25519("mine");
    let volume = tempfile::tempdir().unwrap();
    // More than sockets hold, so that who does not read keeps its place.
    fs::write(volume.path().join("large"), vec![7; 64 << 20]).unwrap();
    let mut server = Server::start(volume.path(), "", &[recipient], 1 << 30);
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /{PATH} HTTP/1.0\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first[9..], b"200");
        held.push(stream);
    }
    assert_eq!(server.ask("GET", &format!("/{PATH}")).0, 503);
    // They read no further. Their places are given back all the same.
    let deadline = Instant::now() + 2 * STALLED;
    while server.ask("GET", &format!("/{PATH}")).0 != 200 {
        assert!(Instant::now() < deadline, "who stalls keeps the others away");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    drop(held);
    run(Command::new("kill")
        .arg("-TERM")
        .arg(server.child.id().to_string()));
    assert!(
        !server.ended().success(),
        "only who fetched it ends it with success"
    );
}
