//! Controllers as kube-runtime runs them: one pass at a time for each object, the earliest wish for another look wins,
//! and a process that dies forgets it all.

use std::collections::BTreeMap;

use crate::api::Key;

/// One operator process: the market's, or one of a provider's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessId {
    /// Number of the market's process.
    Market(usize),
    /// Numbers of the provider and of its process.
    Provider(usize, usize),
}

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// A lease, at the market.
    Lease(Key),
    /// An allocation that may go, at the market.
    AllocationRelease(Key),
    /// An allocation to be answered, at a provider.
    Allocation(Key),
    /// A reservation, at a provider.
    Reservation(Key),
}

/// The passes of one process.
pub struct WorkQueue<P> {
    due: BTreeMap<Task, u64>,
    running: BTreeMap<u64, (Task, P)>,
    begun: u64,
}

impl<P> Default for WorkQueue<P> {
    fn default() -> Self {
        Self {
            due: BTreeMap::new(),
            running: BTreeMap::new(),
            begun: 0,
        }
    }
}

impl<P> WorkQueue<P> {
    /// Asks for a look at `at_ms`; `true` when that is earlier than what was asked for.
    pub fn enqueue(&mut self, task: &Task, at_ms: u64) -> bool {
        match self.due.get(task) {
            Some(due) if *due <= at_ms => false,
            _ => {
                self.due.insert(task.clone(), at_ms);
                true
            }
        }
    }

    /// Takes what is due, unless a pass over the same object runs.
    pub fn take(&mut self, task: &Task, now: u64) -> bool {
        if self.running.values().any(|(t, _)| t == task) || self.due.get(task).is_none_or(|due| *due > now) {
            return false;
        }
        self.due.remove(task);
        true
    }

    /// Begins a pass.
    pub fn begin(&mut self, task: Task, run: P) -> u64 {
        self.begun += 1;
        self.running.insert(self.begun, (task, run));
        self.begun
    }

    /// Takes a pass to do its next write.
    pub fn next(&mut self, id: u64) -> Option<(Task, P)> {
        self.running.remove(&id)
    }

    /// Puts it back.
    pub fn put_back(&mut self, id: u64, task: Task, run: P) {
        self.running.insert(id, (task, run));
    }

    /// When the object of a pass that ended is due.
    pub fn due(&self, task: &Task) -> Option<u64> {
        self.due.get(task).copied()
    }
}
