//! Work queues as in kube-runtime: one reconcile per object at a time, the earliest requeue wins, and a process that
//! is killed loses its queue.

use std::collections::BTreeMap;

use crate::api::Key;

/// One operator process: one of the market's, or one of a provider's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessId {
    /// Index of the market's process.
    Market(usize),
    /// Index of the provider, and of its process.
    Provider(usize, usize),
}

/// The object of a reconcile, and its controller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// A lease, at the market.
    Lease(Key),
    /// An allocation that may be released, at the market.
    AllocationRelease(Key),
    /// An allocation to accept or decline, at a provider.
    Allocation(Key),
    /// A reservation, at a provider.
    Reservation(Key),
}

/// The work queue of one process, and its running reconciles.
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
    /// Enqueues an object for `at_ms`. Returns whether that is earlier than before.
    pub fn enqueue(&mut self, task: &Task, at_ms: u64) -> bool {
        match self.due.get(task) {
            Some(due) if *due <= at_ms => false,
            _ => {
                self.due.insert(task.clone(), at_ms);
                true
            }
        }
    }

    /// Takes an object from the queue if it is due and not being reconciled.
    pub fn take(&mut self, task: &Task, now: u64) -> bool {
        if self.running.values().any(|(t, _)| t == task) || self.due.get(task).is_none_or(|due| *due > now) {
            return false;
        }
        self.due.remove(task);
        true
    }

    /// Begins a reconcile, and returns its number.
    pub fn begin(&mut self, task: Task, run: P) -> u64 {
        self.begun += 1;
        self.running.insert(self.begun, (task, run));
        self.begun
    }

    /// Takes a running reconcile for its next step.
    pub fn next(&mut self, id: u64) -> Option<(Task, P)> {
        self.running.remove(&id)
    }

    /// Puts a running reconcile back.
    pub fn put_back(&mut self, id: u64, task: Task, run: P) {
        self.running.insert(id, (task, run));
    }

    /// When an object is due.
    pub fn due(&self, task: &Task) -> Option<u64> {
        self.due.get(task).copied()
    }
}
