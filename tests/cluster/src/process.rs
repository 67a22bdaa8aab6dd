//! One component of a cluster: started in its namespaces and control group, with its log in a file, and
//! under a test's control: stopped, continued, killed, started again.

use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use leasehold_testtools::command;

/// How often a condition is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// How long a component may take to answer after it was started.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a component may take to end by itself.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Says whether a component answers; an error is asked again until the deadline.
pub(crate) type Probe = Arc<dyn Fn(u32) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// How to start a component; kept, so that it can be started again.
pub(crate) struct Launch {
    pub(crate) name: String,
    /// The namespaces' `nsenter`, or nothing to start on the host.
    pub(crate) enter: Vec<String>,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) join: Vec<PathBuf>,
    pub(crate) log: PathBuf,
    pub(crate) probe: Probe,
}

/// A running, stopped or ended component.
#[derive(Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    launch: Launch,
    child: Mutex<Option<Child>>,
}

/// All components of one cluster, in the order of their first start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    processes: Arc<Mutex<Vec<Process>>>,
}

impl Roster {
    /// Starts a component and waits until it answers.
    pub(crate) async fn start(&self, launch: Launch) -> Result<Process> {
        let process = Process {
            inner: Arc::new(Inner {
                launch,
                child: Mutex::new(None),
            }),
        };
        process.spawn_again()?;
        self.lock().push(process.clone());
        process.ready().await?;
        Ok(process)
    }

    pub(crate) fn all(&self) -> Vec<Process> {
        self.lock().clone()
    }

    /// Collects those that have ended: until then the kernel keeps their numbers.
    pub(crate) fn collect(&self) {
        for process in self.lock().iter() {
            let _ = process.pid();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl Process {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.launch.name
    }

    /// Where both output streams go, over all its lives.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.inner.launch.log
    }

    /// The process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut child = self.child();
        match child.as_mut()?.try_wait() {
            Ok(None) => child.as_ref().map(Child::id),
            _ => None,
        }
    }

    /// SIGSTOP: it stays, and answers nothing. Returns when all its threads have stopped.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn suspend(&self) -> Result<()> {
        let pid = self.signal(Signal::SIGSTOP)?;
        // The signal itself is only noted; a busy machine delivers it later. An end is left for whoever collects it.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid), flags)
            .with_context(|| format!("wait for the stop of {}", self.name()))
            .map(drop)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT).map(drop)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it doesn't die.
    pub async fn kill(&self) -> Result<()> {
        if self.pid().is_some() {
            self.signal(Signal::SIGKILL)?;
        }
        self.gone(STOP_WITHIN).await
    }

    /// SIGTERM, and after 5 s SIGKILL; waits until it is gone.
    ///
    /// # Errors
    /// When it doesn't die.
    pub async fn stop(&self) -> Result<()> {
        if self.pid().is_none() {
            return Ok(());
        }
        self.signal(Signal::SIGTERM)?;
        // A suspended process sees the signal only once it goes on.
        self.signal(Signal::SIGCONT)?;
        match self.gone(STOP_WITHIN).await {
            Ok(()) => Ok(()),
            Err(_) => self.kill().await,
        }
    }

    /// Starts it again after it ended, and waits until it answers.
    ///
    /// # Errors
    /// When it runs already, or doesn't answer in time.
    pub async fn start(&self) -> Result<()> {
        self.spawn_again()?;
        self.ready().await
    }

    /// [`stop`](Self::stop), then [`start`](Self::start).
    ///
    /// # Errors
    /// As theirs.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Waits until the component answers.
    pub(crate) async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let Some(pid) = self.pid() else {
                bail!("{} ended at its start:\n{}", self.name(), self.last_words())
            };
            let error = match (self.inner.launch.probe)(pid).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                bail!(
                    "{} doesn't answer after {} s ({error:#}):\n{}",
                    self.name(),
                    READY_WITHIN.as_secs(),
                    self.last_words()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        command::tail_of_file(self.log())
    }

    fn spawn_again(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} runs already, as process {pid}", self.name());
        }
        let launch = &self.inner.launch;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&launch.log)
            .with_context(|| format!("open {}", launch.log.display()))?;
        // The shell joins the control groups and is then replaced, twice: the pid stays the component's.
        let script: String = launch
            .join
            .iter()
            .map(|file| format!("echo $$ > {} && ", file.display()))
            .collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{script}exec \"$@\""), &launch.name])
            .args(&launch.enter)
            .arg(&launch.program)
            .args(&launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal is for the owner, who then takes the cluster down in order.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", self.name()))?;
        *self.child() = Some(child);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<Pid> {
        let pid = self
            .pid()
            .with_context(|| format!("{} isn't running", self.name()))?;
        let pid = Pid::from_raw(i32::try_from(pid)?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name()))?;
        Ok(pid)
    }

    async fn gone(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while let Some(pid) = self.pid() {
            if Instant::now() > deadline {
                bail!("{} (process {pid}) doesn't end", self.name());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.inner
            .child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ready when the process listens on the TCP port, in whatever network namespace it lives.
pub(crate) fn listens_on(port: u16) -> Probe {
    Arc::new(move |pid| {
        Box::pin(async move {
            // Fields of a line: number, local address:port in hex, remote, state (0A is LISTEN), …
            let wanted = format!(":{port:04X}");
            for file in ["tcp", "tcp6"] {
                let table = std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
                let listening = table.lines().any(|line| {
                    let mut fields = line.split_whitespace().skip(1);
                    fields.next().is_some_and(|local| local.ends_with(&wanted)) && fields.nth(1) == Some("0A")
                });
                if listening {
                    return Ok(());
                }
            }
            bail!("nothing listens on port {port}")
        })
    })
}

/// Ready when the file exists.
pub(crate) fn exists(path: PathBuf) -> Probe {
    Arc::new(move |_| {
        let path = path.clone();
        Box::pin(async move {
            if path.exists() {
                Ok(())
            } else {
                bail!("{} doesn't exist", path.display())
            }
        })
    })
}

/// Ready as soon as it runs.
pub(crate) fn at_once() -> Probe {
    Arc::new(|_| Box::pin(async { Ok(()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, directory: &Path, probe: Probe) -> Launch {
        Launch {
            name: "shell".to_owned(),
            enter: Vec::new(),
            program: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: Vec::new(),
            join: Vec::new(),
            log: directory.join("shell.log"),
            probe,
        }
    }

    #[tokio::test]
    async fn a_component_that_dies_at_its_start_shows_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let launch = shell("echo no such flag >&2; exit 3", directory.path(), listens_on(1));
        let error = Roster::default().start(launch).await.unwrap_err().to_string();
        assert!(error.contains("no such flag"), "{error}");
    }

    #[tokio::test]
    async fn a_component_stops_and_starts_again() {
        let directory = tempfile::tempdir().unwrap();
        let process = Roster::default()
            .start(shell("exec sleep 60", directory.path(), at_once()))
            .await
            .unwrap();
        let first = process.pid().unwrap();
        process.suspend().unwrap();
        process.restart().await.unwrap();
        assert_ne!(process.pid().unwrap(), first);
        process.kill().await.unwrap();
        assert_eq!(process.pid(), None);
    }

    #[tokio::test]
    async fn a_suspended_component_has_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let process = Roster::default()
            .start(shell("while :; do :; done", directory.path(), at_once()))
            .await
            .unwrap();
        let stat = format!("/proc/{}/stat", process.pid().unwrap());
        for _ in 0..50 {
            process.suspend().unwrap();
            let stat = std::fs::read_to_string(&stat).unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            assert!(fields.starts_with('T'), "not stopped: {fields}");
            process.resume().unwrap();
        }
        process.kill().await.unwrap();
    }
}
