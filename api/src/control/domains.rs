//! Customers' own names: claimed, proven, checked again, given up.
//!
//! ```text
//! pending ─► verified ─► active ◄─► moved ─► removed
//!    └─► failed                  (any but removed ─► removed by command)
//! ```
//!
//! `verified` waits for its certificate; without an authority in the configuration a proven name is `active` at once. A
//! name that is removed stays as a tombstone: claimed again, by whomever, it needs a fresh proof.

pub mod check;

use gmah_shared::domain::Claim;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::{TenantId, TenantSlug};
use serde::Serialize;
use time::OffsetDateTime;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Control, ControlError, During as _};

/// A name and how it stands, as operators see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Domain)]
pub struct Domain {
    /// The name.
    pub hostname: String,
    /// Whose it is, or wants to be.
    pub slug: String,
    /// `pending`, `verified`, `active`, `moved`, `removed` or `failed`.
    pub status: String,
    /// What is missing, in words for whoever runs the zone.
    pub reason: Option<String>,
    /// What the name should be a CNAME to.
    pub cname: String,
    /// Name of the TXT record that proves it.
    pub txt_name: String,
    /// Its value.
    pub txt_value: String,
    /// End of its certificate, if it has one of its own.
    #[serde(with = "time::serde::rfc3339::option")]
    pub certificate_expires_at: Option<OffsetDateTime>,
    /// When it was looked at last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub checked_at: Option<OffsetDateTime>,
    #[serde(skip)]
    pub(crate) id: Uuid,
    #[serde(skip)]
    pub(crate) claim: Claim,
}

/// Names that one organisation may have.
const MAX_PER_ORGANIZATION: i64 = 100;

impl Control {
    /// Claims a name for an organisation. Claimed again by the same one it changes nothing, unless it had been removed or
    /// had failed: then it begins anew, with a fresh proof.
    ///
    /// # Errors
    /// [`ControlError::Usage`] for a name that can be nobody's, [`ControlError::Refused`] for one that is held.
    pub async fn add_domain(&self, slug: &TenantSlug, hostname: &Hostname) -> Result<Domain, ControlError> {
        self.can_be_claimed("hostname", hostname)?;
        let tenant = self.tenant(slug).await?;
        let held = self
            .master
            .query_opt(
                "select 1 from organization_domains
                 where organization_id <> $2 and status in ('verified', 'active', 'moved')
                   and (hostname = $1 or right(hostname, length($1) + 1) = '.' || $1) limit 1",
                &[&hostname.as_str(), &tenant.id.as_uuid()],
            )
            .await
            .during("looking for the name")?;
        if held.is_some() {
            return Err(ControlError::Refused(format!(
                "{hostname}, or a name below it, is another organisation's"
            )));
        }
        let added = self
            .master
            .execute(
                "insert into organization_domains (hostname, organization_id)
                 select $1, $2 where (select count(*) from organization_domains
                                      where organization_id = $2 and status <> 'removed') < $3
                 on conflict (hostname, organization_id) do update set
                     status = 'pending', reason = null, nonce = excluded.nonce, target_label = excluded.target_label,
                     verified_at = null, moved_at = null, failures = 0, next_check_at = now(), claimed_at = now(),
                     updated_at = now()
                 where organization_domains.status in ('removed', 'failed')",
                &[&hostname.as_str(), &tenant.id.as_uuid(), &MAX_PER_ORGANIZATION],
            )
            .await
            .during("claiming the name")?;
        let domain = self.domains_of(Some(slug), Some(hostname)).await?.into_iter().next();
        let Some(domain) = domain else {
            return Err(ControlError::Refused(format!("{slug} has {MAX_PER_ORGANIZATION} names already")));
        };
        if added == 0 && matches!(domain.status.as_str(), "removed" | "failed") {
            return Err(ControlError::Refused(format!("{slug} has {MAX_PER_ORGANIZATION} names already")));
        }
        if added > 0 {
            self.log(&domain, "domain.add").await?;
        }
        Ok(domain)
    }

    /// Names, by name; of one organisation, or of all that claim one name.
    ///
    /// # Errors
    /// [`ControlError`] when the master is away.
    pub async fn domains_of(
        &self,
        slug: Option<&TenantSlug>,
        hostname: Option<&Hostname>,
    ) -> Result<Vec<Domain>, ControlError> {
        let sql = format!(
            "{DOMAIN} where ($1::text is null or o.slug = $1) and ($2::text is null or d.hostname = $2)
                and o.status <> 'deleted' order by d.hostname, o.slug limit 10000"
        );
        let (slug, hostname) = (slug.map(TenantSlug::as_str), hostname.map(Hostname::as_str));
        let rows = self.master.query(&sql, &[&slug, &hostname]).await.during("listing names")?;
        rows.iter().map(|row| domain(row, &self.settings.target_base)).collect()
    }

    /// Gives a name up: it is served no more, and stays as a tombstone.
    ///
    /// # Errors
    /// [`ControlError::Refused`] where there is no such name.
    pub async fn remove_domain(
        &self,
        slug: Option<&TenantSlug>,
        hostname: &Hostname,
    ) -> Result<Domain, ControlError> {
        let domain = self.one_domain(slug, hostname).await?;
        self.master
            .execute(
                "with gone as (delete from certificates where domain_id = $1),
                      orders as (delete from certificate_orders where domain_id = $1)
                 update organization_domains
                 set status = 'removed', reason = 'removed by command', updated_at = now() where id = $1",
                &[&domain.id],
            )
            .await
            .during("removing the name")?;
        self.log(&domain, "domain.remove").await?;
        self.one_domain(slug, hostname).await
    }

    /// The one claim that is meant.
    ///
    /// # Errors
    /// [`ControlError::Refused`] where there is none, or several.
    pub async fn one_domain(
        &self,
        slug: Option<&TenantSlug>,
        hostname: &Hostname,
    ) -> Result<Domain, ControlError> {
        let mut all = self.domains_of(slug, Some(hostname)).await?;
        if all.len() > 1 {
            all.retain(|d| d.status != "removed");
        }
        match <[Domain; 1]>::try_from(all) {
            Ok([domain]) => Ok(domain),
            Err(none) if none.is_empty() => Err(ControlError::Refused(format!(
                "nobody has claimed {hostname}: `gmah domain add` comes first"
            ))),
            Err(several) => {
                let slugs: Vec<_> = several.iter().map(|d| d.slug.as_str()).collect();
                Err(ControlError::Refused(format!("{hostname} is claimed by {}: name one", slugs.join(", "))))
            }
        }
    }

    async fn log(&self, domain: &Domain, action: &str) -> Result<(), ControlError> {
        self.master
            .execute(
                "insert into audit_log (actor, action, organization_id, detail)
                 values ($4, $1, $2, jsonb_build_object('hostname', $3::text))",
                &[&action, &domain.claim.organization.as_uuid(), &domain.hostname, &self.actor],
            )
            .await
            .during("writing the audit log")
            .map(drop)
    }

    /// Whether a name, which a request has in that field, can be an organisation's at all.
    pub(super) fn can_be_claimed(
        &self,
        field: &'static str,
        hostname: &Hostname,
    ) -> Result<(), ControlError> {
        let refuse =
            |why: &str| Err(ControlError::field(field, format!("{hostname} cannot be claimed: {why}")));
        let name = hostname.as_str();
        let is_or_below = |base: &Hostname| name == base.as_str() || name.ends_with(&format!(".{base}"));
        let s = &self.settings;
        let own = [&s.base_domain, &s.platform_host, &s.target_base];
        if own.into_iter().chain(&s.neutral_hosts).any(is_or_below) {
            return refuse("it is ours");
        }
        if s.base_domain.as_str().ends_with(&format!(".{name}")) {
            return refuse("our own names are below it");
        }
        // RFC 6761, and what only means something within one network.
        let last = name.rsplit('.').next().unwrap_or("");
        if !name.contains('.')
            || ["localhost", "local", "internal", "invalid", "onion", "arpa"].contains(&last)
        {
            return refuse("it is no public name");
        }
        // The public suffix list: what is a suffix itself belongs to a registry.
        if psl::domain_str(name).is_none() {
            return refuse("it is a public suffix, below which others have their names");
        }
        Ok(())
    }
}

/// A name as an operator typed it.
///
/// # Errors
/// [`ControlError::Usage`] with the rule that it breaks; wildcards and addresses are none.
pub fn parse_hostname(raw: &str) -> Result<Hostname, ControlError> {
    Hostname::parse(raw).map_err(|e| ControlError::Usage(format!("{raw:?}: {e}")))
}

fn domain(row: &Row, target_base: &Hostname) -> Result<Domain, ControlError> {
    let name: String = row.get("hostname");
    let hostname = Hostname::parse(&name)
        .map_err(|e| ControlError::Foreign(format!("name {name} in the master: {e}")))?;
    let claim = Claim {
        hostname,
        organization: TenantId::from_uuid(row.get("organization_id")),
        nonce: row.get("nonce"),
        target_label: row.get("target_label"),
    };
    Ok(Domain {
        hostname: name,
        slug: row.get("slug"),
        status: row.get("status"),
        reason: row.get("reason"),
        cname: claim.target(target_base),
        txt_name: claim.proof_name(),
        txt_value: claim.proof_value(),
        certificate_expires_at: row.get("certificate_expires_at"),
        checked_at: row.get("checked_at"),
        id: row.get("id"),
        claim,
    })
}

/// Index: primary key of organization_domains; operators list names seldom.
const DOMAIN: &str =
    "select d.id, d.hostname, d.organization_id, d.status, d.reason, d.nonce, d.target_label, d.checked_at,
    o.slug,
    (select c.not_after from certificates c where c.domain_id = d.id order by c.created_at desc limit 1)
        as certificate_expires_at
    from organization_domains d join organizations o on o.id = d.organization_id";
