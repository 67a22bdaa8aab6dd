//! What ends a cluster when its owner ends, in whichever way: dropped, it takes the cluster down; and a
//! small process outside notices when the owner was killed, and kills the cluster's processes within
//! moments. What that leaves (a bridge, namespaces, files) the next `up` clears away.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::cgroup::Cgroups;
use crate::process::Roster;
use crate::state::State;

#[derive(Debug)]
pub(crate) struct Lifeline {
    pub(crate) state: State,
    pub(crate) roster: Roster,
    watchdog: Option<Child>,
    armed: bool,
}

impl Lifeline {
    pub(crate) fn new(state: State) -> Self {
        Self {
            state,
            roster: Roster::default(),
            watchdog: None,
            armed: true,
        }
    }

    /// Starts the process that waits for this one's death: when it dies, the pipe between them closes.
    pub(crate) fn watch(&mut self, cgroups: &Cgroups) -> Result<()> {
        // A kernel without the file has no such watch; the next `up` does its work then.
        let Some(file) = cgroups.kill_file() else {
            return Ok(());
        };
        let script = format!(
            "read -r word; [ \"$word\" = keep ] || echo 1 > {}",
            file.display()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the watchdog")?;
        self.watchdog = Some(child);
        Ok(())
    }

    /// Lets the cluster outlive this process.
    pub(crate) fn detach(mut self) -> Result<State> {
        self.state.detached = true;
        self.state.write()?;
        self.dismiss();
        self.armed = false;
        Ok(self.state.clone())
    }

    /// Takes the cluster down.
    pub(crate) fn end(mut self) -> Result<()> {
        self.armed = false;
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<()> {
        let result = self.state.tear_down();
        self.roster.collect();
        self.dismiss();
        result
    }

    fn dismiss(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            if let Some(mut pipe) = watchdog.stdin.take() {
                let _ = pipe.write_all(b"keep\n");
            }
            let _ = watchdog.wait();
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.tear_down()
        {
            // There is nobody to return it to, and the next `up` tries again.
            eprintln!("cluster {} isn't fully gone: {error:#}", self.state.name);
        }
    }
}
