//! Calls the driver from a separate thread, so that the agent keeps running if a call never returns.
//!
//! Each call has a deadline. A thread that misses it gets no further request until its call returns. If that takes
//! too long, another thread is started, up to a fixed number. A driver that blocks all of them stays reported as hung
//! and uses no more threads.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::sources::facts::{Probe, ProbeError, Reading, XidEvent};

/// Opens a probe, calls the closure with it, and closes it again.
pub(crate) type WithProbe =
    Arc<dyn Fn(&mut dyn FnMut(&mut dyn Probe)) -> Result<(), ProbeError> + Send + Sync>;

/// Maximum number of threads, hung ones included.
const THREADS_MAX: usize = 3;
/// How long to wait for a hung thread before another one is started.
const HUNG_THREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the thread takes events between requests.
const EVENTS_PERIOD: Duration = Duration::from_secs(1);
/// Maximum number of events kept until they are taken.
const EVENTS_MAX: usize = 64;

/// Result of a reading.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Read(Reading),
    Failed(ProbeError),
    /// A call to the driver has not returned.
    Hung,
}

/// Whether the next reading may use the library as it is open now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    Keep,
    /// Close and reopen it: a GPU that was reset is visible only to sessions opened afterwards.
    Renew,
}

/// Reads the probe, and never waits longer than its deadline.
pub(crate) struct Watchdog {
    with_probe: WithProbe,
    deadline: Duration,
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

/// State shared by the threads and the agent.
#[derive(Default)]
struct Shared {
    threads: AtomicUsize,
    events: Mutex<Vec<XidEvent>>,
    heard: Notify,
}

struct Worker {
    requests: mpsc::SyncSender<Request>,
    /// The answer that missed its deadline, and the time of its request.
    overdue: Option<(oneshot::Receiver<Answer>, Instant)>,
}

struct Request {
    session: Session,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Reading, ProbeError>;

impl Watchdog {
    pub(crate) fn new(with_probe: WithProbe, deadline: Duration) -> Self {
        Self {
            with_probe,
            deadline,
            shared: Arc::default(),
            worker: None,
        }
    }

    /// Returns when there are events that nobody has taken yet.
    pub(crate) async fn heard(&self) {
        self.shared.heard.notified().await;
    }

    /// The events since the last call.
    pub(crate) fn take_events(&self) -> Vec<XidEvent> {
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the probe within the deadline.
    pub(crate) async fn read(&mut self, session: Session) -> Outcome {
        let mut worker = match self.free_worker() {
            Ok(worker) => worker,
            Err(Busy) => return Outcome::Hung,
        };
        let (answer, answered) = oneshot::channel();
        if worker.requests.send(Request { session, answer }).is_err() {
            // The thread panicked with the previous request. The next reading starts another one.
            return Outcome::Failed(ProbeError::Failed(
                "the thread that calls the driver ended".to_owned(),
            ));
        }
        let started = Instant::now();
        let mut answered = answered;
        let outcome = match tokio::time::timeout(self.deadline, &mut answered).await {
            Ok(Ok(Ok(reading))) => Outcome::Read(reading),
            Ok(Ok(Err(error))) => Outcome::Failed(error),
            Ok(Err(_)) => {
                return Outcome::Failed(ProbeError::Failed(
                    "the thread that calls the driver ended".to_owned(),
                ));
            }
            Err(_) => {
                worker.overdue = Some((answered, started));
                Outcome::Hung
            }
        };
        self.worker = Some(worker);
        outcome
    }

    /// The thread to use: the current one if it is idle, or a new one.
    fn free_worker(&mut self) -> Result<Worker, Busy> {
        match self.worker.take() {
            None => self.start().ok_or(Busy),
            Some(mut worker) => {
                let Some((answer, since)) = &mut worker.overdue else {
                    return Ok(worker);
                };
                match answer.try_recv() {
                    // This answer is outdated, but the thread is available again.
                    Ok(_) => {
                        worker.overdue = None;
                        Ok(worker)
                    }
                    Err(oneshot::error::TryRecvError::Closed) => self.start().ok_or(Busy),
                    Err(oneshot::error::TryRecvError::Empty) => {
                        let given_up = since.elapsed() > HUNG_THREAD_TIMEOUT;
                        match given_up.then(|| self.start()).flatten() {
                            Some(other) => Ok(other),
                            None => {
                                self.worker = Some(worker);
                                Err(Busy)
                            }
                        }
                    }
                }
            }
        }
    }

    fn start(&self) -> Option<Worker> {
        if self.shared.threads.load(Ordering::Acquire) >= THREADS_MAX {
            return None;
        }
        let (requests, received) = mpsc::sync_channel(1);
        let (with_probe, shared) = (Arc::clone(&self.with_probe), Arc::clone(&self.shared));
        shared.threads.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&shared));
        let started = std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || {
                let _counted = counted;
                work(&with_probe, &received, &shared);
            });
        match started {
            Ok(_) => Some(Worker {
                requests,
                overdue: None,
            }),
            Err(error) => {
                tracing::error!(%error, "cannot start a thread for the driver");
                None
            }
        }
    }
}

struct Busy;

/// Decrements the number of threads when dropped, also after a panic.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Body of the thread: opens the probe with the first request, and again on request or after a failure.
fn work(with_probe: &WithProbe, requests: &mpsc::Receiver<Request>, shared: &Shared) {
    let mut next = requests.recv().ok();
    while let Some(request) = next.take() {
        let mut first = Some(request.answer);
        let opened = with_probe(&mut |probe| {
            let mut answer = first.take();
            loop {
                if let Some(answer) = answer.take() {
                    let reading = probe.read();
                    let failed = reading.is_err();
                    answer.send(reading).ok();
                    if failed {
                        return;
                    }
                }
                match requests.recv_timeout(EVENTS_PERIOD) {
                    Ok(request) if request.session == Session::Renew => {
                        shared.push_events(probe.events());
                        next = Some(request);
                        return;
                    }
                    Ok(request) => answer = Some(request.answer),
                    Err(mpsc::RecvTimeoutError::Timeout) => (),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
                shared.push_events(probe.events());
            }
        });
        if let (Err(error), Some(answer)) = (opened, first) {
            answer.send(Err(error)).ok();
        }
        if next.is_none() {
            next = requests.recv().ok();
        }
    }
}

impl Shared {
    fn push_events(&self, new: Vec<XidEvent>) {
        if new.is_empty() {
            return;
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        for event in new {
            if events.len() < EVENTS_MAX {
                events.push(event);
            }
        }
        self.heard.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A probe that hangs while a flag is set.
    #[derive(Clone, Default)]
    struct HangingProbe {
        hangs: Arc<AtomicBool>,
        opened: Arc<AtomicUsize>,
        events: Arc<Mutex<Vec<XidEvent>>>,
    }

    impl Probe for HangingProbe {
        fn read(&mut self) -> Result<Reading, ProbeError> {
            while self.hangs.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Ok(Reading {
                driver_version: "1".to_owned(),
                ..Reading::default()
            })
        }
        fn events(&mut self) -> Vec<XidEvent> {
            std::mem::take(&mut *self.events.lock().unwrap())
        }
    }

    fn watchdog(probe: &HangingProbe) -> Watchdog {
        let probe = probe.clone();
        Watchdog::new(
            Arc::new(move |lend| {
                probe.opened.fetch_add(1, Ordering::AcqRel);
                lend(&mut probe.clone());
                Ok(())
            }),
            Duration::from_millis(200),
        )
    }

    fn is_read(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Read(_))
    }

    #[tokio::test]
    async fn a_hanging_call_is_reported_in_time_and_its_thread_is_reused() {
        let probe = HangingProbe::default();
        let mut watchdog = watchdog(&probe);
        assert!(is_read(&watchdog.read(Session::Keep).await));
        probe.hangs.store(true, Ordering::Release);
        let started = Instant::now();
        assert_eq!(watchdog.read(Session::Keep).await, Outcome::Hung);
        assert!(started.elapsed() < Duration::from_secs(2));
        let again = Instant::now();
        assert_eq!(
            watchdog.read(Session::Keep).await,
            Outcome::Hung,
            "a hanging thread gets no further request"
        );
        assert!(again.elapsed() < Duration::from_millis(100));
        probe.hangs.store(false, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !is_read(&watchdog.read(Session::Keep).await) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert_eq!(probe.opened.load(Ordering::Acquire), 1, "the thread was reused");
    }

    #[tokio::test]
    async fn a_hanging_driver_uses_a_limited_number_of_threads() {
        let probe = HangingProbe::default();
        probe.hangs.store(true, Ordering::Release);
        let mut watchdog = watchdog(&probe);
        for _ in 0..10 {
            assert_eq!(watchdog.read(Session::Keep).await, Outcome::Hung);
            // As if the timeout for a hung thread had passed.
            if let Some(Worker {
                overdue: Some((_, since)),
                ..
            }) = &mut watchdog.worker
                && let Some(long_ago) = since.checked_sub(2 * HUNG_THREAD_TIMEOUT)
            {
                *since = long_ago;
            }
        }
        assert_eq!(watchdog.shared.threads.load(Ordering::Acquire), THREADS_MAX);
        probe.hangs.store(false, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(5);
        while watchdog.shared.threads.load(Ordering::Acquire) > 1
            || !is_read(&watchdog.read(Session::Keep).await)
        {
            assert!(
                Instant::now() < deadline,
                "threads whose calls return end, and the last one reads"
            );
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_renewed_session_opens_the_library_again() {
        let probe = HangingProbe::default();
        let mut watchdog = watchdog(&probe);
        for session in [Session::Keep, Session::Keep, Session::Renew, Session::Keep] {
            assert!(is_read(&watchdog.read(session).await));
        }
        assert_eq!(probe.opened.load(Ordering::Acquire), 2);
    }

    #[tokio::test]
    async fn events_are_received_between_requests() {
        let probe = HangingProbe::default();
        let mut watchdog = watchdog(&probe);
        assert!(is_read(&watchdog.read(Session::Keep).await));
        let event = XidEvent {
            uuid: "GPU-a".to_owned(),
            xid: 79,
        };
        probe.events.lock().unwrap().push(event.clone());
        tokio::time::timeout(Duration::from_secs(5), watchdog.heard())
            .await
            .expect("an event before the deadline");
        assert_eq!(watchdog.take_events(), [event]);
        assert!(watchdog.take_events().is_empty());
    }

    #[tokio::test]
    async fn a_library_that_cannot_be_opened_is_tried_again() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let mut watchdog = Watchdog::new(
            Arc::new(move |_| {
                counted.fetch_add(1, Ordering::AcqRel);
                Err(ProbeError::NoLibrary("no such file".to_owned()))
            }),
            Duration::from_secs(5),
        );
        for _ in 0..3 {
            assert!(matches!(
                watchdog.read(Session::Keep).await,
                Outcome::Failed(ProbeError::NoLibrary(_))
            ));
        }
        assert_eq!(tries.load(Ordering::Acquire), 3);
    }
}
