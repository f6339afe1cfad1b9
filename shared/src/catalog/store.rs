//! SQL against the master database.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool, PoolError};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::holders;
use super::policy::{Branding, Limits, Maintenance, MaintenanceMode, Policy, PoolOverrides};
use super::{EdgeTenant, Placement, Tenant, TenantDetail};
use crate::hostname::Hostname;
use crate::pg::{Hosts, Transport};
use crate::secret::data::DataKeys;
use crate::secret::{MasterKey, SecretError};
use crate::tenant::{Generation, TenantId, TenantSlug};
use crate::token::{Keyring, SigningKey, VerifyingKey};

/// Reads the catalog. Cheap to clone; every question has a deadline.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    key: MasterKey,
    timeout: Duration,
}

/// Why the master gave no answer. None of these says anything about the tenant that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection within the deadline.
    #[error("master database: no connection")]
    Pool(#[source] PoolError),
    /// The query failed.
    #[error("master database: query failed")]
    Query(#[source] tokio_postgres::Error),
    /// No answer within the deadline.
    #[error("master database: no answer in time")]
    Timeout,
    /// A row that breaks the rules of its table.
    #[error("master database: row is not valid: {0}")]
    Row(String),
    /// A sealed value did not open.
    #[error("master database: {0}")]
    Secret(#[from] SecretError),
    /// An older revision than was seen before: the master was restored from a backup.
    #[error("master database: revision {found} is older than {known}, which was seen before")]
    Regressed {
        /// Revision that was read.
        found: i64,
        /// Revision that is known.
        known: i64,
    },
}

impl StoreError {
    /// Whether the master itself is in trouble, and not one row of it.
    pub fn is_masters(&self) -> bool {
        match self {
            Self::Pool(_) | Self::Timeout => true,
            // Connection, resources, intervention, system (PostgreSQL, appendix A); anything else is about the data.
            Self::Query(e) => e.as_db_error().is_none_or(|d| {
                ["08", "53", "57", "58"].iter().any(|class| d.code().code().starts_with(class))
            }),
            Self::Row(_) | Self::Secret(_) | Self::Regressed { .. } => false,
        }
    }
}

impl Store {
    /// A store over a pool of the master; `timeout` bounds each question.
    pub fn new(pool: Pool, key: MasterKey, timeout: Duration) -> Self {
        Self { pool, key, timeout }
    }

    /// The pool, for other questions to the master.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The key that seals.
    pub fn master_key(&self) -> &MasterKey {
        &self.key
    }

    /// The tenant of a slug, unless deleted.
    ///
    /// # Errors
    /// [`StoreError`] when the master gave no answer.
    pub fn by_slug(&self, slug: TenantSlug) -> BoxFuture<'static, Result<Option<EdgeTenant>, StoreError>> {
        let this = self.clone();
        async move { this.one(BY_SLUG, &[&slug.as_str()], edge_tenant).await }.boxed()
    }

    /// The tenant that holds a custom domain, unless deleted.
    ///
    /// # Errors
    /// As [`Store::by_slug`].
    pub fn by_domain(&self, host: Hostname) -> BoxFuture<'static, Result<Option<EdgeTenant>, StoreError>> {
        let this = self.clone();
        async move { this.one(BY_DOMAIN, &[&host.as_str()], edge_tenant).await }.boxed()
    }

    /// The newest certificate of a custom domain that is served, or is about to be.
    ///
    /// # Errors
    /// As [`Store::by_slug`], and when its key does not open.
    pub fn certificate(
        &self,
        host: Hostname,
    ) -> BoxFuture<'static, Result<Option<StoredCertificate>, StoreError>> {
        let this = self.clone();
        async move {
            let key = this.key.clone();
            this.one(CERTIFICATE, &[&host.as_str()], move |row| {
                let domain: uuid::Uuid = row.get("domain_id");
                Ok(StoredCertificate {
                    organization: TenantId::from_uuid(row.get("id")),
                    revision: row.get("revision"),
                    pair: KeyPair {
                        chain_pem: row.get("chain_pem"),
                        key_pem: key.open_text(&format!("certificates/{domain}"), row.get("private_key"))?,
                    },
                })
            })
            .await
        }
        .boxed()
    }

    /// The newest certificate that was ordered for the base domain and its wildcard.
    ///
    /// # Errors
    /// As [`Store::by_slug`], and when its key does not open.
    pub async fn base_certificate(&self, base: &Hostname) -> Result<Option<KeyPair>, StoreError> {
        let rows = self.many(BASE_CERTIFICATE, &[&base.as_str()]).await?;
        let pair = |row: &Row| {
            Ok(KeyPair {
                chain_pem: row.get("chain_pem"),
                key_pem: self.key.open_text(&format!("certificates/*.{base}"), row.get("private_key"))?,
            })
        };
        rows.first().map(pair).transpose()
    }

    /// Secrets that session tickets are derived from, the newest first.
    ///
    /// # Errors
    /// As [`Store::detail`].
    pub async fn ticket_secrets(&self) -> Result<Vec<zeroize::Zeroizing<Vec<u8>>>, StoreError> {
        let rows = self.many(TICKET_SECRETS, &[]).await?;
        rows.iter()
            .map(|row| Ok(self.key.open("ticket_secrets", row.get("secret")).map(zeroize::Zeroizing::new)?))
            .collect()
    }

    /// Proofs that the certificate authority may ask for right now.
    ///
    /// # Errors
    /// As [`Store::by_slug`].
    pub async fn challenges(&self) -> Result<Vec<Proof>, StoreError> {
        let rows = self.many(CHALLENGES, &[]).await?;
        Ok(rows
            .iter()
            .map(|row| Proof {
                hostname: row.get("hostname"),
                token: row.get("token"),
                kind: row.get("kind"),
                key_authorization: row.get("key_authorization"),
            })
            .collect())
    }

    /// Everything about a tenant, unless deleted.
    ///
    /// # Errors
    /// As [`Store::by_slug`], and when its password does not open.
    pub fn detail(&self, id: TenantId) -> BoxFuture<'static, Result<Option<TenantDetail>, StoreError>> {
        let this = self.clone();
        async move {
            let key = this.key.clone();
            this.one(DETAIL, &[&id.as_uuid()], move |row| detail(row, &key)).await
        }
        .boxed()
    }

    /// The keys that sign and verify tokens. With `private`, the signing key is opened as well.
    ///
    /// # Errors
    /// As [`Store::detail`].
    pub async fn keyring(&self, private: bool) -> Result<Keyring, StoreError> {
        // A handful of rows: one active key, one to come, and those whose tokens may still live.
        let rows = self.many(KEYS, &[]).await?;
        let mut signing = None;
        let mut verifying = Vec::new();
        for row in &rows {
            let kid: String = row.get("kid");
            let odd = |e: crate::token::KeyError| StoreError::Row(format!("signing key {kid}: {e}"));
            if private && row.get::<_, String>("state") == "active" {
                let der = self.key.open(&format!("signing_keys/{kid}"), row.get("private_key"))?;
                signing = Some(SigningKey::from_pkcs8(&der).map_err(odd)?);
            }
            verifying.push(VerifyingKey::from_bytes(row.get("public_key")).map_err(odd)?);
        }
        Ok(Keyring::new(signing, verifying))
    }

    /// The newest revision of all: never less than that of a row that was read, unless the master was restored from a
    /// backup.
    ///
    /// # Errors
    /// As [`Store::by_slug`].
    pub fn newest_revision(&self) -> BoxFuture<'static, Result<i64, StoreError>> {
        let this = self.clone();
        async move {
            let newest = match this.one(NEWEST, &[], |row| Ok(row.get("newest"))).await {
                // Not migrated yet, or not ours to read: it cannot be doubted, and is believed.
                Err(StoreError::Query(e))
                    if e.code() == Some(&SqlState::UNDEFINED_TABLE)
                        || e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
                {
                    Some(i64::MAX)
                }
                other => other?,
            };
            newest.ok_or_else(|| StoreError::Row("newest revision: nothing".into()))
        }
        .boxed()
    }

    /// As a [`super::cache::Newest`].
    pub fn newest(&self) -> super::cache::Newest {
        let this = self.clone();
        Box::new(move || this.newest_revision())
    }

    /// Whether the master answers at all.
    ///
    /// # Errors
    /// As [`Store::by_slug`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.many("select 1", &[]).await.map(drop)
    }

    async fn one<T>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        read: impl FnOnce(&Row) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let rows = self.many(sql, params).await?;
        rows.first().map(read).transpose()
    }

    pub(super) async fn many(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StoreError> {
        let asked = async {
            let client = self.pool.get().await.map_err(StoreError::Pool)?;
            let held = Broken(Some(client));
            let client = held.client();
            let statement = client.prepare_cached(sql).await.map_err(StoreError::Query)?;
            let rows = client.query(&statement, params).await.map_err(StoreError::Query)?;
            held.whole();
            Ok(rows)
        };
        tokio::time::timeout(self.timeout, asked).await.map_err(|_| StoreError::Timeout)?
    }
}

/// A connection that is thrown away unless its question was answered: after a time-out nobody knows what it still
/// has to say.
struct Broken(Option<Object>);

impl Broken {
    fn client(&self) -> &Object {
        self.0.as_ref().expect("held until dropped")
    }

    fn whole(mut self) {
        self.0 = None;
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

fn tenant(row: &Row) -> Result<Tenant, StoreError> {
    let slug: String = row.get("slug");
    let status: String = row.get("status");
    Ok(Tenant {
        id: TenantId::from_uuid(row.get("id")),
        slug: TenantSlug::parse(&slug).map_err(|e| StoreError::Row(format!("{slug}: {e}")))?,
        status: status.parse().map_err(|e| StoreError::Row(format!("{slug}: {e}")))?,
        generation: Generation(row.get("generation")),
        revision: row.get("revision"),
    })
}

fn edge_tenant(row: &Row) -> Result<EdgeTenant, StoreError> {
    let small = |name: &str| row.get::<_, Option<i32>>(name).and_then(|n| u32::try_from(n).ok());
    let number = |name: &str| small(name).and_then(NonZeroU32::new);
    let plan = Limits {
        requests_per_second: number("requests_per_second"),
        request_burst: number("request_burst"),
        concurrent_requests: number("concurrent_requests"),
        max_body_bytes: row
            .get::<_, Option<i64>>("max_body_bytes")
            .and_then(|n| NonZeroU64::new(u64::try_from(n).ok()?)),
        weight: small("weight").unwrap_or(1),
    };
    let mode = match row.get::<_, Option<&str>>("maintenance_mode") {
        Some("hold") => Some(MaintenanceMode::Hold {
            patience: Duration::from_secs(small("maintenance_hold_seconds").unwrap_or(0).into()),
            requests: small("maintenance_hold_requests").unwrap_or(0),
        }),
        Some("read_only") => Some(MaintenanceMode::ReadOnly),
        // What a later version knows and this one does not: nothing is served rather than too much.
        Some(_) => Some(MaintenanceMode::Full),
        None => None,
    };
    let maintenance = mode.map(|mode| {
        Box::new(Maintenance {
            mode,
            retry_after: small("maintenance_retry_after").unwrap_or(30),
            bypass: row
                .get::<_, Option<&[u8]>>("maintenance_bypass")
                .and_then(|hash| <[u8; 32]>::try_from(hash).ok()),
        })
    });
    let branding: Option<serde_json::Value> = row.get("branding");
    Ok(EdgeTenant {
        tenant: tenant(row)?,
        policy: Policy {
            limits: plan.with_own(&row.get("limits")),
            maintenance,
            pools: PoolOverrides::parse(&row.get("pools")).map(Box::new),
            branding: branding.and_then(|b| Branding::parse(row.get("name"), &b)).map(Box::new),
        },
    })
}

fn detail(row: &Row, key: &MasterKey) -> Result<TenantDetail, StoreError> {
    let tenant = tenant(row)?;
    let context = format!("organizations/{}/role", tenant.id);
    let password = key.open_text(&context, row.get("role_password"))?;
    let next: Option<&[u8]> = row.get("role_password_next");
    let next_password = next.map(|sealed| key.open_text(&context, sealed)).transpose()?;
    let sealed: Vec<Vec<u8>> = row.get("data_keys");
    let data_keys = (!sealed.is_empty()).then(|| DataKeys::unwrap(key, tenant.id, &sealed)).transpose()?;
    let server = server(row, "")?.ok_or_else(|| StoreError::Row(format!("{}: no server", tenant.slug)))?;
    let replica = self::server(row, "replica_")?;
    let mut detail = TenantDetail {
        data_keys: data_keys.map(Arc::new),
        name: row.get("name"),
        plan: row.get("plan"),
        max_members: row.get("max_members"),
        max_users: row.get("max_users"),
        max_storage_bytes: row.get("max_storage_bytes"),
        modules: row.get("modules"),
        limits: row.get("limits"),
        settings: row.get("settings"),
        sessions_since: Generation(row.get("sessions_since")),
        placement: Placement {
            server: server.name,
            hosts: server.hosts,
            transport: server.transport,
            database: row.get("database_name"),
            role: row.get("role_name"),
            password,
            next_password,
            number: row.get("placement"),
            is_replica: false,
        },
        replica: None,
        tenant,
    };
    if let Some(Server { name, hosts, transport }) = replica {
        let mut copy = detail.clone();
        copy.placement = Placement { server: name, hosts, transport, is_replica: true, ..copy.placement };
        detail.replica = Some(Arc::new(copy));
    }
    Ok(detail)
}

/// How a server is reached.
struct Server {
    name: Arc<str>,
    hosts: Hosts,
    transport: Transport,
}

/// The server of a row whose columns begin with `prefix`, if there is one.
fn server(row: &Row, prefix: &str) -> Result<Option<Server>, StoreError> {
    let column = |name: &str| format!("{prefix}{name}");
    let name = if prefix.is_empty() { "server" } else { prefix.trim_end_matches('_') };
    let Some(name) = row.get::<_, Option<&str>>(name) else { return Ok(None) };
    let odd = |what: &str, e: &dyn std::fmt::Display| StoreError::Row(format!("server {name}: {what}: {e}"));
    let port = u16::try_from(row.get::<_, i32>(&*column("port"))).map_err(|e| odd("port", &e))?;
    let hosts = Hosts::parse(row.get(&*column("host")), port).map_err(|e| odd("host", &e))?;
    let (tls, ca) = (row.get(&*column("tls")), row.get(&*column("tls_ca")));
    let transport = Transport::parse(tls, ca).map_err(|e| odd("tls", &e))?;
    Ok(Some(Server { name: name.into(), hosts, transport }))
}

/// A customer's certificate, as it is kept.
#[derive(Debug, Clone)]
pub struct StoredCertificate {
    /// Whose domain it is for.
    pub organization: TenantId,
    /// Of that organisation.
    pub revision: i64,
    /// The certificate.
    pub pair: KeyPair,
}

/// A certificate and its key, both as PEM.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The chain, leaf first.
    pub chain_pem: String,
    /// The key, opened.
    pub key_pem: secrecy::SecretString,
}

/// What the certificate authority is shown (RFC 8555, section 8).
#[derive(Debug, Clone)]
pub struct Proof {
    /// For which name.
    pub hostname: String,
    /// Which proof.
    pub token: String,
    /// `http-01` or `tls-alpn-01`.
    pub kind: String,
    /// What it says.
    pub key_authorization: String,
}

/// Every statement, by name, for a test that prepares them and looks at their plans.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("by_slug", BY_SLUG),
    ("by_domain", BY_DOMAIN),
    ("detail", DETAIL),
    ("newest", NEWEST),
    ("keys", KEYS),
    ("certificate", CERTIFICATE),
    ("base_certificate", BASE_CERTIFICATE),
    ("ticket_secrets", TICKET_SECRETS),
    ("challenges", CHALLENGES),
    ("derivation", holders::DERIVATION),
    ("make_derivation", holders::MAKE_DERIVATION),
    ("tell_keys", holders::TELL),
    ("forget_holder", holders::FORGET),
];

/// Indexes: organizations_slug, then the primary key of plans.
const BY_SLUG: &str = include_str!("by_slug.sql");

/// Indexes: organization_domains_held, then the primary keys of organizations and plans.
const BY_DOMAIN: &str = include_str!("by_domain.sql");

/// Indexes: organization_domains_held, then certificates_domain.
const CERTIFICATE: &str = include_str!("certificate.sql");

/// Index: certificates_base_domain.
const BASE_CERTIFICATE: &str = "select chain_pem, private_key from certificates where base_domain = $1
    order by created_at desc limit 1";

/// A handful of rows.
const TICKET_SECRETS: &str = "select secret from ticket_secrets order by id desc limit 4";

/// As many rows as there are orders under way.
const CHALLENGES: &str = "select hostname, token, kind, key_authorization from acme_challenges
    where expires_at > now() order by hostname, token limit 1000";

/// Indexes: primary keys.
const DETAIL: &str = include_str!("detail.sql");

/// Index: organizations_revision.
const NEWEST: &str = "select greatest((select max(revision) from organizations),
    (select max(revision) from catalog_deletions), 0) as newest";

/// A few rows in all. A retired key verifies for as long as a router that is cut off may sign with it, `max_stale` unless
/// that is set to more than twenty minutes, and as tokens live.
const KEYS: &str = "select kid, state, public_key, private_key from signing_keys
    where state <> 'retired' or retired_at > now() - interval '20 minutes' order by kid";
