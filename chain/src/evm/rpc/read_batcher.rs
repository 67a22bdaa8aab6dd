//! One question to the endpoint for all who ask at once: an operator that looks at thousands of accounts every half
//! minute would keep a node busy with nothing else.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use leasehold_planner::ports::PaymentError;
use tokio::{sync::oneshot, time::sleep};

/// How long the first who asks waits for others. Little beside a call, much beside the time between two of thousands.
const WINDOW: Duration = Duration::from_millis(5);

type Answer<A> = Result<A, PaymentError>;

/// Who asks, and waits for the answer.
pub(crate) struct Asker<Q, A> {
    pub(crate) question: Q,
    answer: oneshot::Sender<Answer<A>>,
}

impl<Q, A> Asker<Q, A> {
    /// Tells it; it may have gone meanwhile.
    pub(crate) fn tell(self, answer: Answer<A>) {
        let _ = self.answer.send(answer);
    }
}

/// Those who ask, until the question is put for all of them: after each of them asked, so that no answer is older than
/// its question.
pub(crate) struct Gathering<Q, A>(Mutex<Vec<Asker<Q, A>>>);

impl<Q, A> Default for Gathering<Q, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Q, A> Gathering<Q, A> {
    /// The answer to `question`. `put` has to [`take`](Self::take) all who ask and tell each; it runs for the first of
    /// them, to its end, even when nobody waits any more.
    pub(crate) async fn ask(&self, question: Q, put: impl Future<Output = ()> + Send + 'static) -> Answer<A> {
        let (answer, told) = oneshot::channel();
        let first = {
            let mut askers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            askers.push(Asker { question, answer });
            askers.len() == 1
        };
        if first {
            tokio::spawn(async move {
                sleep(WINDOW).await;
                put.await;
            });
        }
        told.await
            .unwrap_or_else(|_| Err(PaymentError::Unreachable("the question was dropped".into())))
    }

    /// All who ask by now; the next who asks is a first one again.
    pub(crate) fn take(&self) -> Vec<Asker<Q, A>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
