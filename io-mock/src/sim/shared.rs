//! What the executor, the drivers and the application's handle share: the world, behind one lock.
//!
//! One thread runs everything, so nobody ever waits for the lock; it is there because a driver
//! must be `Sync`. It is never held across a call into an operation, a future or a waker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::world::World;

/// The world of one run.
pub(super) struct Shared {
    world: Mutex<World>,
    /// For wakers that must not keep the world alive.
    this: Weak<Shared>,
}

impl Shared {
    pub(super) fn new(world: World) -> Arc<Self> {
        Arc::new_cyclic(|this| Shared {
            world: Mutex::new(world),
            this: this.clone(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        // After a panic the run has failed; what is left is only looked at for the report.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn weak(&self) -> &Weak<Shared> {
        &self.this
    }
}
