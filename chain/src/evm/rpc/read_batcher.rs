//! Batches concurrent reads of one kind into one request, so that an operator which reads thousands of accounts every
//! half minute does not overload its RPC endpoint.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use leasehold_planner::ports::PaymentError;
use tokio::{sync::oneshot, time::sleep};

/// How long the first read of a batch waits for others: short compared with a call, and much longer than the time
/// between two reads when there are thousands.
const WINDOW: Duration = Duration::from_millis(5);

type Answer<A> = Result<A, PaymentError>;

/// A read that waits for its batch.
pub(crate) struct PendingRead<K, A> {
    /// What is to be read.
    pub(crate) key: K,
    answer: oneshot::Sender<Answer<A>>,
}

impl<K, A> PendingRead<K, A> {
    /// Completes the read. The caller may have been dropped meanwhile.
    pub(crate) fn complete(self, answer: Answer<A>) {
        let _ = self.answer.send(answer);
    }
}

/// Reads that wait for the next batch. A batch is sent after each of its reads was requested, so that no answer is
/// older than its request.
pub(crate) struct ReadBatcher<K, A>(Mutex<Vec<PendingRead<K, A>>>);

impl<K, A> Default for ReadBatcher<K, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, A> ReadBatcher<K, A> {
    /// Reads `key` with the next batch. `batch` has to [`take`](Self::take) all pending reads and complete each. It is
    /// run for the first read of a batch, and runs to its end even if all callers were dropped.
    pub(crate) async fn read(&self, key: K, batch: impl Future<Output = ()> + Send + 'static) -> Answer<A> {
        let (answer, completed) = oneshot::channel();
        let first = {
            let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            pending.push(PendingRead { key, answer });
            pending.len() == 1
        };
        if first {
            tokio::spawn(async move {
                sleep(WINDOW).await;
                batch.await;
            });
        }
        completed.await.unwrap_or_else(|_| {
            Err(PaymentError::Unreachable(
                "the read was dropped before it was sent".into(),
            ))
        })
    }

    /// Takes all pending reads. The next read starts a new batch.
    pub(crate) fn take(&self) -> Vec<PendingRead<K, A>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
