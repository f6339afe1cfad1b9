//! Certificates for customers' names (RFC 8555): ordered once however many routers run, installed only when they work.
//!
//! ```text
//! due ─► taken (lease, fence) ─► the DNS still says so ─► budget ─► order ─► proof ─► install ─► probe ─► active
//!   ▲                                                                                    └─ taken back, alarm
//!   └──────────────── back-off, or what Retry-After says ◄── anything else
//! ```
//!
//! The base domain and its wildcard are ordered in the same way where a program can make the DNS say so (`acme/hook.rs`).
//!
//! What is due stands in `certificate_orders`; a router takes one row at a time and raises its fence, so that whoever was
//! thought dead and is not writes nothing any more. Nothing is due because somebody knocked: rows come from names that
//! were proven.

mod account;
mod hook;
mod install;
mod order;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use gmah_shared::catalog::{Invalidate, Store};
use gmah_shared::config::{AcmeSettings, Settings};
use gmah_shared::dns::Dns;
use gmah_shared::domain::{self, Claim};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantId;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::config::Proxies;
use crate::metrics::{Metrics, OrderResult};
use account::Authority;

/// What orders certificates.
pub struct Acme {
    settings: Settings,
    acme: AcmeSettings,
    store: Store,
    dns: Dns,
    authority: Authority,
    metrics: Arc<Metrics>,
    /// Our own listener, where a new certificate must show, and what it has in memory.
    probe: SocketAddr,
    proxies: Proxies,
    held: Arc<dyn Invalidate>,
    /// This router, as holder of leases.
    me: Uuid,
    wake: Wake,
}

/// Whom notices wake.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    /// A customer's certificate is due.
    pub claims: Arc<Notify>,
    /// The base domain's is due.
    pub base_order: Arc<Notify>,
    /// The base domain's own certificate has changed.
    pub base: Arc<Notify>,
}

/// A certificate that is due, taken.
pub(crate) struct Job {
    order: Uuid,
    fence: i64,
    attempts: i32,
    subject: Subject,
    /// Values of TXT records that an earlier holder had made, and may not have taken away.
    left: Vec<String>,
}

/// What a certificate is for.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// A customer's name.
    Claim { domain: Uuid, claim: Claim },
    /// The base domain and every name right below it.
    Base(Hostname),
}

/// Which orders a task looks after. Each has one of its own: the DNS may take minutes, and customers need not wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// Customers' names.
    Claims,
    /// The base domain.
    Base,
}

impl Subject {
    /// The name that the probe asks for, and that is logged.
    pub(crate) const fn hostname(&self) -> &Hostname {
        match self {
            Self::Claim { claim, .. } => &claim.hostname,
            Self::Base(base) => base,
        }
    }

    /// The names of the certificate.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Claim { claim, .. } => vec![claim.hostname.to_string()],
            Self::Base(base) => vec![base.to_string(), format!("*.{base}")],
        }
    }

    /// What the key is sealed for.
    pub(crate) fn context(&self) -> String {
        match self {
            Self::Claim { domain, .. } => format!("certificates/{domain}"),
            Self::Base(base) => format!("certificates/*.{base}"),
        }
    }

    const fn timeout(&self) -> Duration {
        match self {
            Self::Claim { .. } => ORDER_TIMEOUT,
            Self::Base(_) => BASE_TIMEOUT,
        }
    }

    const fn proof_timeout(&self) -> Duration {
        match self {
            Self::Claim { .. } => PROOF_TIMEOUT,
            Self::Base(_) => BASE_PROOF_TIMEOUT,
        }
    }
}

/// Why there is no certificate. The sentences are for operators and for whoever runs the name's zone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    #[error("{0}")]
    Check(domain::Fault),
    #[error("the certificate authority: {0}")]
    Authority(String),
    /// It asked to be left alone for so long.
    #[error("the certificate authority: {message}")]
    Pause { message: String, pause: Duration },
    #[error("the orders of this hour are used up")]
    Budget,
    #[error("no answer in time")]
    Timeout,
    #[error("the master: {0}")]
    Master(String),
    #[error("the new certificate: {0}")]
    Certificate(String),
    #[error("the new certificate was not served, and was taken back")]
    Probe,
    #[error("another router took over")]
    Fenced,
    #[error("acme.wildcard.hook: {0}")]
    Hook(String),
}

impl From<tokio_postgres::Error> for AcmeError {
    fn from(e: tokio_postgres::Error) -> Self {
        Self::Master(e.as_db_error().map_or_else(|| e.to_string(), |d| d.message().to_owned()))
    }
}

impl Acme {
    /// Everything that is needed; nothing is asked yet.
    ///
    /// # Errors
    /// When the file with authorities cannot be read.
    pub fn new(
        settings: &Settings,
        acme: &AcmeSettings,
        store: Store,
        dns: Dns,
        metrics: Arc<Metrics>,
        listener: (SocketAddr, Proxies, Arc<dyn Invalidate>),
        wake: Wake,
    ) -> Result<Self, String> {
        let (mut probe, proxies, held) = listener;
        if probe.ip().is_unspecified() {
            probe.set_ip(match probe {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Self {
            authority: Authority::new(acme, settings.master_key.clone())?,
            settings: settings.clone(),
            acme: acme.clone(),
            store,
            dns,
            metrics,
            probe,
            proxies,
            held,
            me: Uuid::new_v4(),
            wake,
        })
    }

    /// Works for as long as the program runs.
    pub async fn run(self: Arc<Self>, orders: Orders) -> std::convert::Infallible {
        loop {
            loop {
                match in_time(self.take(orders)).await {
                    Ok(Some(job)) => self.work(job).await,
                    Ok(None) => break,
                    Err(e) => {
                        tracing::warn!(error = %e, "certificates: nothing taken");
                        break;
                    }
                }
            }
            let pause = self.acme.poll.mul_f64(rand::random_range(0.8..1.2));
            let wake = match orders {
                Orders::Claims => &self.wake.claims,
                Orders::Base => &self.wake.base_order,
            };
            // Woken by a notice or by the clock; it looks for everything either way.
            let _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    }

    async fn work(&self, job: Job) {
        let hostname = job.subject.hostname().clone();
        let worked = tokio::time::timeout(job.subject.timeout(), self.obtain(&job)).await;
        let result = worked.unwrap_or(Err(AcmeError::Timeout));
        let written = match &result {
            Ok(()) => {
                tracing::info!(hostname = %hostname, "certificate installed");
                self.metrics.order(OrderResult::Done);
                Ok(())
            }
            Err(e) => {
                let paused = matches!(e, AcmeError::Budget | AcmeError::Pause { .. });
                self.metrics.order(if paused { OrderResult::Paused } else { OrderResult::Failed });
                tracing::warn!(hostname = %hostname, error = %e, "no certificate");
                in_time(self.put_off(&job, e)).await
            }
        };
        if let Err(e) = written {
            // The lease ends by itself.
            tracing::warn!(hostname = %hostname, error = %e, "certificates: result not written");
        }
    }

    async fn obtain(&self, job: &Job) -> Result<(), AcmeError> {
        self.authority.forget_retry_after();
        let s = &self.settings;
        if let Subject::Claim { claim, .. } = &job.subject {
            let check = domain::check(&self.dns, claim, &s.domains, &s.target_base, Some(&self.acme));
            check.await.map_err(AcmeError::Check)?;
        }
        let account = self.authority.account(&mut self.client().await?).await?;
        order::tidy(self, job).await?;
        let order_id = self.spend(job.subject.hostname()).await?;
        let issued = order::issue(self, &account, job).await?;
        install::install(self, job, order_id, issued, &account).await
    }

    async fn client(&self) -> Result<Object, AcmeError> {
        self.store.pool().get().await.map_err(|_| AcmeError::Master("no connection".into()))
    }

    /// Gives back what this router has taken, when it stops.
    pub async fn release(&self) {
        let given = async {
            let sql = "update certificate_orders set holder = null, held_until = null where holder = $1";
            Ok(self.client().await?.execute(sql, &[&self.me]).await?)
        };
        if let Err(e) = tokio::time::timeout(RELEASE_TIMEOUT, given).await.unwrap_or(Err(AcmeError::Timeout))
        {
            // The lease ends by itself.
            tracing::debug!(error = %e, "certificates: not given back");
        }
    }

    /// Takes one order that is due; nobody else has it for as long as the lease lasts.
    async fn take(&self, orders: Orders) -> Result<Option<Job>, AcmeError> {
        let client = self.client().await?;
        let base = (orders == Orders::Base).then_some(&self.settings.base_domain);
        if let Some(base) = base {
            // Nobody claims it, so whoever is to have it says so.
            client.execute(WANT_BASE, &[&base.as_str()]).await?;
        }
        let timeout = if base.is_some() { BASE_TIMEOUT } else { ORDER_TIMEOUT };
        let lease = (timeout + LEASE_MARGIN).as_secs_f64();
        let base_text = base.map(Hostname::as_str);
        let row = client.query_opt(TAKE, &[&self.me, &lease, &self.acme.directory, &base_text]).await?;
        let Some(row) = row else { return Ok(None) };
        let subject = match base {
            Some(base) => Subject::Base(base.clone()),
            None => {
                let name: String = row.get("hostname");
                let claim = Claim {
                    hostname: Hostname::parse(&name)
                        .map_err(|e| AcmeError::Master(format!("{name}: {e}")))?,
                    organization: TenantId::from_uuid(row.get("organization_id")),
                    nonce: row.get("nonce"),
                    target_label: row.get("target_label"),
                };
                Subject::Claim { domain: row.get("domain_id"), claim }
            }
        };
        Ok(Some(Job {
            order: row.get("id"),
            fence: row.get("fence"),
            attempts: row.get("attempts"),
            subject,
            left: row.get("shown"),
        }))
    }

    /// Counts an order against the hour's budget of all routers.
    async fn spend(&self, hostname: &Hostname) -> Result<Uuid, AcmeError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        transaction.execute("select pg_advisory_xact_lock($1)", &[&BUDGET_LOCK]).await?;
        transaction.execute("delete from acme_orders where at < now() - interval '1 day'", &[]).await?;
        let max = i64::try_from(self.acme.max_orders_per_hour.get()).unwrap_or(i64::MAX);
        let row = transaction
            .query_opt(
                "insert into acme_orders (hostname) select $1
                 where (select count(*) from acme_orders where at > now() - interval '1 hour') < $2
                 returning id",
                &[&hostname.as_str(), &max],
            )
            .await?;
        transaction.commit().await?;
        row.map(|r| r.get(0)).ok_or(AcmeError::Budget)
    }

    /// Gives a name back, to be tried again later. The old certificate stays.
    async fn put_off(&self, job: &Job, error: &AcmeError) -> Result<(), AcmeError> {
        let backoff = self.acme.retry_after.saturating_mul(1 << job.attempts.clamp(0, 20)).min(MAX_PAUSE);
        // What is said of one name is not said of all: most limits are by name. The rest are left alone for a moment.
        let pause = match error {
            AcmeError::Pause { pause, .. } => backoff.max(*pause),
            AcmeError::Budget => BUDGET_PAUSE,
            _ => backoff,
        };
        let pause = pause.mul_f64(rand::random_range(1.0..1.2)).as_secs_f64();
        let reason: String = error.to_string().replace('\0', "").chars().take(500).collect();
        // Whoever was not tried has not failed.
        let untried = i32::from(matches!(error, AcmeError::Budget | AcmeError::Pause { .. }));
        let client = self.client().await?;
        client
            .execute(
                "with mine as (
                     update certificate_orders set holder = null, held_until = null, attempts = attempts - $6,
                         due_at = now() + make_interval(secs => $4), last_error = $5
                     where id = $1 and fence = $2 and holder = $3 returning domain_id)
                 update organization_domains set reason = $5, updated_at = now()
                 where id in (select domain_id from mine) and status = 'verified'",
                &[&job.order, &job.fence, &self.me, &pause, &reason, &untried],
            )
            .await?;
        if let AcmeError::Pause { pause, .. } = error {
            client
                .execute(
                    "update acme_accounts set paused_until = now() + make_interval(secs => $2) where directory = $1",
                    &[&self.acme.directory, &(*pause).min(ACCOUNT_PAUSE).as_secs_f64()],
                )
                .await?;
        }
        Ok(())
    }
}

/// What is asked of the master alone has a deadline of its own: a connection may look alive and answer nothing.
async fn in_time<T>(asked: impl Future<Output = Result<T, AcmeError>>) -> Result<T, AcmeError> {
    tokio::time::timeout(MASTER_TIMEOUT, asked).await.unwrap_or(Err(AcmeError::Timeout))
}

const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const MASTER_TIMEOUT: Duration = Duration::from_secs(20);
/// An order takes less than this, all in all.
const ORDER_TIMEOUT: Duration = Duration::from_secs(240);
/// The same where the DNS has to say something first, and a program is run up to eight times.
const BASE_TIMEOUT: Duration = Duration::from_secs(1200);
/// Shorter than the whole, so that what was shown is taken back also when it takes too long.
const PROOF_TIMEOUT: Duration = Duration::from_secs(160);
const BASE_PROOF_TIMEOUT: Duration = Duration::from_secs(600);
/// A lease is longer than its order by this, so that nobody else begins while somebody may still be at it.
const LEASE_MARGIN: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(12 * 3600);
/// The longest that all names wait because of one.
const ACCOUNT_PAUSE: Duration = Duration::from_secs(120);
const BUDGET_PAUSE: Duration = Duration::from_secs(300);
const BUDGET_LOCK: i64 = 0x676d_6168_6f72_6472;

const WANT_BASE: &str =
    "insert into certificate_orders (base_domain) values ($1) on conflict (base_domain) do nothing";

/// Index: certificate_orders_due.
const TAKE: &str = "
    update certificate_orders q set holder = $1, held_until = now() + make_interval(secs => $2), fence = q.fence + 1,
        attempts = q.attempts + 1
    from (select q.id, d.hostname, d.organization_id, d.nonce, d.target_label
        from certificate_orders q
        left join organization_domains d on d.id = q.domain_id
        left join organizations o on o.id = d.organization_id
        where q.due_at <= now() and (q.held_until is null or q.held_until < now())
          and q.base_domain is not distinct from $4
          and (q.domain_id is null
               or d.status in ('verified', 'active') and o.status not in ('deleted', 'provisioning'))
          and not exists (select 1 from acme_accounts a where a.directory = $3 and a.paused_until > now())
        order by q.due_at limit 1 for update of q skip locked) due
    where q.id = due.id
    returning q.id, q.domain_id, q.fence, q.attempts - 1 as attempts, q.shown, due.hostname, due.organization_id, due.nonce,
        due.target_label";
