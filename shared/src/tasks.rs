//! Named background tasks, and their end.
//!
//! Nothing in the program is spawned without a name: whoever spawns can say at shutdown which task did not stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks that are told to stop together.
#[derive(Clone)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<u64, (&'static str, AbortHandle)>>>,
    runtime: Handle,
}

impl Tasks {
    /// A group on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> Self {
        Self::on(Handle::current())
    }

    /// A group on that runtime.
    pub fn on(runtime: Handle) -> Self {
        Self {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
            runtime,
        }
    }

    /// Cancelled when the group is told to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a task until it ends; it is expected to watch [`Tasks::token`].
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let running = self.running.clone();
        // The entry is made under the lock that its removal needs, so a task that ends at once leaves none behind.
        let mut guard = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = self.tracker.spawn_on(
            async move {
                let _leave = Leave { running, id };
                task.await;
            },
            &self.runtime,
        );
        guard.insert(id, (name, handle.abort_handle()));
    }

    /// Runs a task that has no end of its own, and drops it when the group is told to stop. It must be safe to drop
    /// at any await.
    pub fn spawn_forever<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = std::convert::Infallible> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = token.cancelled() => {}
                never = task => match never {},
            }
        });
    }

    /// Tells every task to stop and waits for at most `grace`; what is left is aborted and named.
    pub async fn stop(&self, grace: Duration) -> Vec<&'static str> {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let left: Vec<_> = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.values().map(|(name, handle)| (*name, handle.clone())).collect()
        };
        for (name, handle) in &left {
            tracing::warn!(task = name, "task did not stop in time");
            handle.abort();
        }
        left.into_iter().map(|(name, _)| name).collect()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

struct Leave {
    running: Arc<Mutex<BTreeMap<u64, (&'static str, AbortHandle)>>>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let left = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if std::thread::panicking() {
            tracing::error!(task = left.map_or("?", |(name, _)| name), "task panicked");
        }
    }
}

/// Runs a task that ends with the thing it serves (a connection, a request), on the current runtime.
#[expect(clippy::disallowed_methods, reason = "the one place where a task without a group is spawned")]
pub fn detach<F>(name: &'static str, task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tracing::trace!(task = name, "spawned");
    tokio::spawn(task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_stop_and_the_stubborn_are_named() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        tasks.spawn("obeys", async move { token.cancelled().await });
        tasks.spawn("ends by itself", async {});
        tasks.spawn_forever("forever", std::future::pending());
        tasks.spawn("stubborn", std::future::pending());
        assert_eq!(tasks.stop(Duration::from_millis(200)).await, ["stubborn"]);
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_only() {
        let tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert!(tasks.stop(Duration::from_secs(5)).await.is_empty());
    }
}
