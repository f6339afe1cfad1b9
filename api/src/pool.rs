//! One bounded pool per tenant, one budget per PostgreSQL server.
//!
//! * A tenant never has more than `pool.max_per_tenant` connections, nor more than seven eighths of what there are; all
//!   tenants of a server together never more than `pool.max_per_server`, counted until the server itself has closed
//!   its end. Who gets the next one is in [`budget`].
//! * When the budget is spent, the idle connection that was used longest ago is given up; leased ones never are.
//! * A new connection is handed out only after it has proved to be the right database ([`proof`]).
//! * After failures nobody tries for a while ([`breaker`]): one tenant's trouble is that tenant's alone.
//! * Pools are keyed by organisation and generation: after a move or a restore the old pool is closed and never
//!   handed out again. Nothing falls back to another pool.

pub mod breaker;
pub mod budget;
pub mod connection;
pub mod proof;
pub mod registry;
pub mod slots;

mod socket;

use gmah_shared::tenant::Generation;

pub use registry::{Lease, Registry};

/// Why there is no connection. None of these says anything to a client but "not now".
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Too many requests of this tenant wait already.
    #[error("the tenant's queue for connections is full")]
    Queue,
    /// No connection became free in time.
    #[error("no connection became free in time")]
    Wait,
    /// A connect failed a moment ago.
    #[error("connecting failed a moment ago: {}", .0.as_str())]
    Resting(breaker::Failure),
    /// The server accepted neither role nor password; the catalog may know others by now.
    #[error("role or password are not accepted")]
    Authentication(#[source] connection::ConnectError),
    /// A connection that was used before gave no answer in time.
    #[error("the server gives no answer")]
    Silent,
    /// Connecting failed.
    #[error("connecting failed")]
    Connect(#[source] connection::ConnectError),
    /// The database is not this organisation's.
    #[error("the database does not prove to be this organisation's")]
    WrongDatabase,
    /// The database's schema is none that this program serves.
    #[error("the schema is none that this program serves")]
    Schema,
    /// The caller's catalog row is older than one that was seen.
    #[error("a newer generation is known: {0}")]
    Superseded(Generation),
    /// The pool was closed while waiting.
    #[error("the pool was closed")]
    Closed,
}

impl PoolError {
    /// Whether it is the server that gives no connection, and not one organisation's database or queue.
    pub fn is_servers(&self) -> bool {
        match self {
            Self::Silent => true,
            Self::Resting(why) => why.is_servers(),
            Self::Connect(e) => e.failure().is_servers(),
            Self::Queue
            | Self::Wait
            | Self::Authentication(_)
            | Self::WrongDatabase
            | Self::Schema
            | Self::Superseded(_)
            | Self::Closed => false,
        }
    }
}
