//! The tasks of a driver: counted, and stopped together.

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A set of tasks.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    running: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        let running = TaskTracker::new();
        // Closed from the start: it only means that `wait` ends whenever nothing runs.
        running.close();
        Tasks {
            runtime,
            running,
            stop: CancellationToken::new(),
        }
    }

    /// A set within this one: stopping this one stops it too, and not the other way round.
    pub(crate) fn child(&self) -> Self {
        let running = TaskTracker::new();
        running.close();
        Tasks {
            runtime: self.runtime.clone(),
            running,
            stop: self.stop.child_token(),
        }
    }

    /// Runs a future until it ends or the set is stopped.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = async move {
            stop.run_until_cancelled_owned(future).await;
        };
        self.running.spawn_on(task, &self.runtime);
    }

    /// Stops every task at its next await. Later ones do not begin.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the set is stopped.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits until none is running.
    pub(crate) async fn wait(&self) {
        self.running.wait().await;
    }

    /// How many are running.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }
}
