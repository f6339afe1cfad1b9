//! What a tenant is to the other crates, read from the master database and kept close.
//!
//! * [`policy`]: what the edge does with a tenant's requests.
//! * [`store`]: SQL against the master, one indexed query per question.
//! * [`cache`]: a bounded cache in front of it, with single flight, a negative side of its own, and a stated limit to
//!   how stale an answer may be.
//! * [`holders`]: which keys each node knows.
//! * [`listen`]: notices of change, with a probe that shows when they stop coming.

pub mod cache;
pub mod holders;
pub mod listen;
pub mod policy;
pub mod store;

use std::sync::Arc;

use secrecy::SecretString;

use crate::pg::{Hosts, Transport};
use crate::secret::data::DataKeys;
use crate::tenant::{Generation, TenantId, TenantSlug, TenantStatus};

pub use cache::{Cache, CacheMetrics, Hit, Invalidate, Loader, Lookup, Record};
pub use holders::Holder;
pub use policy::{Branding, Limits, Maintenance, MaintenanceMode, Policy, PoolOverrides};
pub use store::{KeyPair, Proof, Store, StoreError, StoredCertificate};

/// What the edge needs to know of a tenant. Small: a router keeps every one that it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Organisation id.
    pub id: TenantId,
    /// Slug.
    pub slug: TenantSlug,
    /// Where it stands in its life.
    pub status: TenantStatus,
    /// Raised by every change of placement or status.
    pub generation: Generation,
    /// Raised by every change of anything.
    pub revision: i64,
}

/// A tenant as the edge keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeTenant {
    /// Who it is.
    pub tenant: Tenant,
    /// What goes for its requests.
    pub policy: Policy,
}

/// Everything that the api and the control plane need to know.
#[derive(Debug, Clone)]
pub struct TenantDetail {
    /// What the edge knows as well.
    pub tenant: Tenant,
    /// Display name.
    pub name: String,
    /// Key of its plan.
    pub plan: String,
    /// Most members by plan or override; none means unlimited.
    pub max_members: Option<i64>,
    /// Most users that can log in.
    pub max_users: Option<i64>,
    /// Most bytes of files.
    pub max_storage_bytes: Option<i64>,
    /// Modules that are switched on, in order of their names.
    pub modules: Vec<String>,
    /// Overrides of the plan's numbers.
    pub limits: serde_json::Value,
    /// Branding and business settings.
    pub settings: serde_json::Value,
    /// Logins of an earlier generation are over: that of its last suspension.
    pub sessions_since: Generation,
    /// Keys of its sensitive fields; none before the first is made.
    pub data_keys: Option<Arc<DataKeys>>,
    /// Where its data is.
    pub placement: Placement,
    /// The same row, as it is entered at the copy of its server, if that has one.
    pub replica: Option<Arc<TenantDetail>>,
}

/// Where an organisation's database is, and how the api enters it.
#[derive(Debug, Clone)]
pub struct Placement {
    /// PostgreSQL server, by its name in the master.
    pub server: Arc<str>,
    /// Hosts of that server.
    pub hosts: Hosts,
    /// How the way there is protected.
    pub transport: Transport,
    /// Database.
    pub database: String,
    /// Role that the api connects as.
    pub role: String,
    /// Its password, opened.
    pub password: SecretString,
    /// The one that is about to take its place: whoever is refused with the one tries the other.
    pub next_password: Option<SecretString>,
    /// Number that the identity row of the database must show (rule 5).
    pub number: i32,
    /// Whether it is a copy of the server, which takes no writes.
    pub is_replica: bool,
}

impl Placement {
    /// Whether two placements are one and the same database, entered in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_same_place(other) && self.has_same_passwords(other)
    }

    /// Whether two placements are one and the same database, entered with whatever password.
    pub fn is_same_place(&self, other: &Self) -> bool {
        (&self.server, &self.hosts, &self.transport, &self.database, &self.role, self.number)
            == (&other.server, &other.hosts, &other.transport, &other.database, &other.role, other.number)
    }

    /// Whether two placements are entered with the same passwords.
    pub fn has_same_passwords(&self, other: &Self) -> bool {
        use secrecy::ExposeSecret as _;
        let next = |p: &Self| p.next_password.as_ref().map(|n| n.expose_secret().to_owned());
        self.password.expose_secret() == other.password.expose_secret() && next(self) == next(other)
    }
}
