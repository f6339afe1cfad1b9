//! A connection on loan.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::ClientWrapper;
use gmah_shared::tasks;

use super::{Registry, TenantPool};
use crate::db::{Answer, Question};
use crate::pool::breaker::Failure;
use crate::pool::budget::Held;
use crate::pool::connection::{Connection, cancel_and_close};

/// A connection on loan. Back to its pool when dropped, unless something is still running on it.
pub struct Lease {
    pub(super) held: Option<Held<Connection>>,
    pub(super) pool: Arc<TenantPool>,
    pub(super) registry: Registry,
    /// Set when a statement of a transaction got no answer in time.
    pub(super) silent: Arc<AtomicBool>,
    /// Set while a statement runs: a lease that is dropped then is not reusable.
    pub(super) busy: bool,
}

impl Lease {
    /// The client, and the mark that something is running on it. Whatever is done with it, the session is cleaned before
    /// its next use.
    pub fn parts(&mut self) -> (&mut ClientWrapper, &mut bool) {
        let connection = self.held.as_mut().expect("held until dropped").get();
        connection.is_altered = true;
        (&mut connection.client, &mut self.busy)
    }

    /// The same, for [`crate::repo::STATEMENTS`] and transactions that are ended: none of them alters the session.
    pub(crate) fn unaltered_parts(&mut self) -> (&mut ClientWrapper, &mut bool) {
        (&mut self.held.as_mut().expect("held until dropped").get().client, &mut self.busy)
    }

    /// Asks the first question of a new connection.
    pub(super) async fn ask(&mut self, question: &Question<'_>) -> Answer {
        self.busy = true;
        let answer = question.ask(&self.held.as_mut().expect("held until dropped").get().client).await;
        self.busy = false;
        answer
    }

    /// Where a transaction leaves word that it got no answer in time.
    pub(crate) fn silent(&self) -> Arc<AtomicBool> {
        self.silent.clone()
    }

    /// A statement got no answer in time: nothing of this pool is to be trusted.
    pub(crate) fn went_silent(&mut self) {
        self.busy = true;
        self.pool.server.budget.clear(self.pool.id);
        self.registry.note(&self.pool, Failure::Silent);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.silent.load(Ordering::Acquire) {
            self.went_silent();
        }
        let Some(held) = self.held.take() else { return };
        if self.busy {
            let connection = held.take_lost();
            let transport = self.pool.detail.load().placement.transport.clone();
            tasks::detach("tenant-cancel", cancel_and_close(connection, transport));
        }
    }
}
