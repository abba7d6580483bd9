//! Work that several callers want at the same time and that is done once.
//!
//! The work runs as an operation of its own, so it ends whatever becomes of the caller that
//! started it; callers wait for its result without an action. Nothing is kept once it is done.
//! (client-go: `singleflight.Group`)

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_util::future::{Either, select};

use crate::error::{DeadlineExceeded, Error, Result};
use crate::operation::{Io, Operation};
use crate::time::Instant;
use crate::why::Why;

/// The work under way, by what it is for.
pub(crate) struct Flights<K, V> {
    running: Mutex<BTreeMap<K, Arc<Flight<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights {
            running: Mutex::new(BTreeMap::new()),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Ord + Clone + Send + 'static,
    V: Clone + Send + 'static,
{
    /// Waits for the work named `key`; starts it if nobody has.
    ///
    /// # Errors
    ///
    /// What the work failed with, or [`Error::Closed`] if the driver dropped it.
    pub(crate) async fn join<F, Fut>(
        self: &Arc<Self>,
        io: &Io,
        label: &'static str,
        key: K,
        work: F,
    ) -> Result<V>
    where
        F: FnOnce(Io) -> Fut,
        Fut: Future<Output = Result<V>> + Send + 'static,
    {
        let (flight, first) = self.enter(&key);
        if first {
            let landing = Landing {
                flights: self.clone(),
                key,
                flight: flight.clone(),
            };
            io.spawn(Operation::new(label, |io| {
                let work = work(io);
                async move { landing.land(work.await) }
            }));
        }
        flight.wait().await
    }

    fn enter(&self, key: &K) -> (Arc<Flight<V>>, bool) {
        let mut running = lock(&self.running);
        match running.get(key) {
            Some(flight) => (flight.clone(), false),
            None => {
                let flight = Arc::new(Flight::default());
                running.insert(key.clone(), flight.clone());
                (flight, true)
            }
        }
    }
}

/// Runs work as an operation of its own and waits for its result: the work ends whatever becomes
/// of the caller.
///
/// # Errors
///
/// What the work failed with, or [`Error::Closed`] if the driver dropped it.
pub(crate) async fn detached<V, F, Fut>(io: &Io, label: &'static str, work: F) -> Result<V>
where
    V: Clone + Send + 'static,
    F: FnOnce(Io) -> Fut,
    Fut: Future<Output = Result<V>> + Send + 'static,
{
    let flights = Arc::new(Flights::<(), V>::default());
    flights.join(io, label, (), work).await
}

/// Waits for something that has no deadline of its own, but no longer than the caller does.
///
/// # Errors
///
/// [`Error::DeadlineExceeded`] that says what was waited for.
pub(crate) async fn until<F: Future>(
    io: &Io,
    deadline: Option<Instant>,
    waiting_for: Why,
    future: F,
) -> Result<F::Output> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    let timer = pin!(io.sleep_until(deadline, Why::CallerDeadline));
    match select(pin!(future), timer).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(_) => Err(Error::DeadlineExceeded(Box::new(DeadlineExceeded::new(
            waiting_for,
            0,
            None,
        )))),
    }
}

struct Flight<V> {
    state: Mutex<FlightState<V>>,
}

enum FlightState<V> {
    Running(Vec<Waker>),
    Landed(Result<V>),
}

impl<V> Default for Flight<V> {
    fn default() -> Self {
        Flight {
            state: Mutex::new(FlightState::Running(Vec::new())),
        }
    }
}

impl<V: Clone> Flight<V> {
    async fn wait(&self) -> Result<V> {
        let mut place = None;
        poll_fn(|cx| match &mut *lock(&self.state) {
            FlightState::Landed(result) => Poll::Ready(result.clone()),
            FlightState::Running(wakers) => {
                match place.and_then(|place: usize| wakers.get_mut(place)) {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => {
                        place = Some(wakers.len());
                        wakers.push(cx.waker().clone());
                    }
                }
                Poll::Pending
            }
        })
        .await
    }

    fn land(&self, result: Result<V>) {
        let landed = FlightState::Landed(result);
        let before = std::mem::replace(&mut *lock(&self.state), landed);
        if let FlightState::Running(wakers) = before {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Ends a flight exactly once, also if the work is dropped before its end.
struct Landing<K: Ord, V: Clone> {
    flights: Arc<Flights<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
}

impl<K: Ord, V: Clone> Landing<K, V> {
    fn land(self, result: Result<V>) {
        // Leave the table first: whoever comes after this result must get a newer one.
        lock(&self.flights.running).remove(&self.key);
        self.flight.land(result);
    }
}

impl<K: Ord, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        if matches!(*lock(&self.flight.state), FlightState::Running(_)) {
            lock(&self.flights.running).remove(&self.key);
            self.flight.land(Err(Error::Closed));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Action, Reply};
    use std::task::Context;

    fn caller(flights: &Arc<Flights<u8, u32>>, result: u32) -> Operation<Result<u32>> {
        let flights = flights.clone();
        Operation::new("caller", move |io| async move {
            flights
                .join(&io, "work", 1, |io| async move {
                    io.sleep_until(Instant::ZERO, Why::MemberRefresh).await;
                    Ok(result)
                })
                .await
        })
    }

    fn poll<T>(operation: &mut Operation<T>) -> Poll<T> {
        operation.poll(&mut Context::from_waker(Waker::noop()), Instant::ZERO)
    }

    fn spawned<T>(operation: &mut Operation<T>) -> Operation<()> {
        match operation.next_action() {
            Some((_, Action::Spawn(child))) => child,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn concurrent_callers_share_one_run_and_later_ones_start_another() {
        let flights = Arc::default();
        let (mut first, mut second) = (caller(&flights, 1), caller(&flights, 2));
        assert!(poll(&mut first).is_pending());
        assert!(poll(&mut second).is_pending());
        let mut work = spawned(&mut first);
        assert!(second.next_action().is_none());

        // The caller that started it may leave.
        drop(first);
        assert!(poll(&mut work).is_pending());
        let (id, _) = work.next_action().unwrap();
        work.complete(id, Reply::Woke).unwrap();
        assert!(poll(&mut work).is_ready());
        assert_eq!(poll(&mut second), Poll::Ready(Ok(1)));

        let mut third = caller(&flights, 3);
        assert!(poll(&mut third).is_pending());
        spawned(&mut third);
    }

    #[test]
    fn work_that_is_dropped_fails_its_waiters_and_leaves_no_trace() {
        let flights = Arc::default();
        let mut waiting = caller(&flights, 1);
        assert!(poll(&mut waiting).is_pending());
        drop(spawned(&mut waiting));
        assert_eq!(poll(&mut waiting), Poll::Ready(Err(Error::Closed)));
        assert!(lock(&flights.running).is_empty());
    }
}
