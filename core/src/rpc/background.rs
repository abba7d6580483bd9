//! Counts the work that goes on behind callers' backs, so that closing can wait for it.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// The work of one client that nobody waits for.
#[derive(Default)]
pub(crate) struct Background {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    closed: bool,
    waiting: Vec<Waker>,
}

/// One piece of work; over when this is dropped.
pub(crate) struct Running {
    background: Arc<Background>,
}

impl Background {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a piece of work.
    pub(crate) fn enter(self: &Arc<Self>) -> Running {
        self.lock().running += 1;
        Running {
            background: self.clone(),
        }
    }

    /// Lets nothing new begin.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many pieces of work are not over.
    pub(crate) fn running(&self) -> usize {
        self.lock().running
    }

    /// Waits until all work is over.
    pub(crate) async fn idle(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.running == 0 {
                return Poll::Ready(());
            }
            if !state
                .waiting
                .iter()
                .any(|waker| waker.will_wake(cx.waker()))
            {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.background.lock();
        state.running -= 1;
        if state.running == 0 {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn closing_waits_for_the_last_piece_of_work() {
        let background = Arc::<Background>::default();
        assert!(background.idle().now_or_never().is_some());
        let (first, second) = (background.enter(), background.enter());
        drop(first);
        assert_eq!(background.running(), 1);
        assert!(background.idle().now_or_never().is_none());
        drop(second);
        assert!(background.idle().now_or_never().is_some());
        background.close();
        assert!(background.is_closed());
    }
}
