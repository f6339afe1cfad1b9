//! Looking whether names are still proven and still lead here: by command, and again and again in the background.

use std::time::Duration;

use deadpool_postgres::Pool;
use gmah_shared::config::Settings;
use gmah_shared::dns::Dns;
use gmah_shared::domain::{self, Claim, Fault};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantId;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::Domain;
use crate::control::{Control, ControlError, During as _};

/// A name that is to be looked at.
struct Due {
    id: Uuid,
    status: String,
    failures: i32,
    is_overdue: bool,
    is_over_grace: bool,
    claim: Claim,
}

impl Control {
    /// Looks at a name now.
    ///
    /// # Errors
    /// [`ControlError::Refused`] where it is given up or fails; the reason is kept with the name.
    pub async fn verify_domain(&self, domain: &Domain) -> Result<Domain, ControlError> {
        if domain.status == "removed" {
            return Err(ControlError::Refused(format!(
                "{} was removed: `gmah domain add` gives it a fresh proof",
                domain.hostname
            )));
        }
        let dns = Dns::new(&self.settings.dns).map_err(|e| ControlError::Usage(e.to_string()))?;
        let sql = format!("{DUE} where d.id = $3");
        let (overdue, grace) = limits(&self.settings);
        let row =
            self.master.query_one(&sql, &[&overdue, &grace, &domain.id]).await.during("reading the name")?;
        look(&self.master, &self.settings, &dns, due(&row)?).await?;
        let slug = crate::control::parse_slug(&domain.slug)?;
        let now = self.one_domain(Some(&slug), &domain.claim.hostname).await?;
        match (now.status.as_str(), &now.reason) {
            ("verified" | "active", _) => Ok(now),
            (status, Some(reason)) => {
                Err(ControlError::Refused(format!("{} is {status}: {reason}", now.hostname)))
            }
            (status, None) => Err(ControlError::Refused(format!("{} is {status}", now.hostname))),
        }
    }
}

/// Looks at names that are due, for as long as the program runs. Several nodes share the work.
pub async fn run(settings: Settings, master: Pool, dns: Dns) -> std::convert::Infallible {
    loop {
        let looked = tokio::time::timeout(ROUND_TIMEOUT, round(&settings, &master, &dns)).await;
        let pause = match looked {
            Ok(Ok(0)) => PAUSE,
            Ok(Ok(_)) => Duration::from_millis(100),
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "names not checked");
                PAUSE
            }
            Err(_) => PAUSE,
        };
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

const PAUSE: Duration = Duration::from_secs(5);
/// Names that one node takes at once.
const BATCH: i64 = 20;
/// For all of a batch; what is not done by then is due again.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

async fn round(settings: &Settings, master: &Pool, dns: &Dns) -> Result<usize, ControlError> {
    let client = master.get().await.map_err(|_| ControlError::Silent("master database".into()))?;
    let (overdue, grace) = limits(settings);
    // Taken by moving them into the future: a node that dies leaves them due a little later.
    let sql = format!(
        "with taken as (
             update organization_domains set next_check_at = now() + interval '3 minutes'
             where id in (select id from organization_domains
                          where next_check_at <= now() and status not in ('removed', 'failed')
                          order by next_check_at limit $3 for update skip locked)
             returning id)
         {DUE} where d.id in (select id from taken)"
    );
    let rows = client.query(&sql, &[&overdue, &grace, &BATCH]).await.during("taking names that are due")?;
    // At once, so that one slow zone holds up nobody.
    let looks = rows.iter().map(|row| async { look(&client, settings, dns, due(row)?).await });
    for result in futures::future::join_all(looks).await {
        if let Err(e) = result {
            tracing::warn!(error = %e, "a name was not checked");
        }
    }
    Ok(rows.len())
}

/// Looks at one name and writes down what was seen.
async fn look(client: &Client, settings: &Settings, dns: &Dns, due: Due) -> Result<(), ControlError> {
    // What authorities are allowed is asked before a certificate is: one that is served is not worse for it.
    let is_served = matches!(due.status.as_str(), "active" | "moved");
    let acme = settings.acme.as_ref().filter(|_| !is_served);
    let check = domain::check(dns, &due.claim, &settings.domains, &settings.target_base, acme);
    let seen = tokio::time::timeout(CHECK_TIMEOUT, check).await;
    let seen = seen.unwrap_or_else(|_| Err(Fault::Unknown("it took too long".into())));
    let hostname = &due.claim.hostname;
    match (due.status.as_str(), seen) {
        ("pending" | "failed", Ok(())) => proven(client, settings, &due).await,
        (_, Ok(())) => {
            // Back, if it had moved; whatever was wrong is not any more.
            let sql = "update organization_domains set
                    status = case
                        when status = 'moved' then 'active'
                        when status = 'verified' and exists (select 1 from certificates where domain_id = $1)
                            then 'active'
                        else status end,
                    reason = case when status = 'verified' then reason end, failures = 0, moved_at = null,
                    checked_at = now(), next_check_at = now() + make_interval(secs => $2), updated_at = now()
                where id = $1 and status in ('verified', 'active', 'moved')";
            if settings.acme.is_some() {
                // Also for names that were proven before there was an authority.
                order(client, due.id).await?;
            }
            client.execute(sql, &[&due.id, &jittered(*settings.domains.recheck_every)]).await
                .during("writing what was seen")?;
            Ok(())
        }
        ("pending" | "failed", Err(fault)) => {
            let gone = due.is_overdue;
            let pause = doubled(*settings.domains.retry_after, due.failures, MAX_PAUSE);
            let sql = "update organization_domains set
                    status = case when $3 then 'failed' else 'pending' end, reason = $2, failures = failures + 1,
                    checked_at = now(), next_check_at = now() + make_interval(secs => $4), updated_at = now()
                where id = $1 and status in ('pending', 'failed')";
            client.execute(sql, &[&due.id, &fault.to_string(), &gone, &jittered(pause)]).await
                .during("writing what was seen")?;
            Ok(())
        }
        (_, Err(fault)) => still_there(client, settings, &due, &fault).await.inspect(|()| {
            tracing::warn!(hostname = %hostname, reason = %fault, "a name that is served does not pass its check");
        }),
    }
}

/// A name that is served does not pass: moved after some checks in a row, gone after the grace. The DNS being away
/// counts for nothing.
async fn still_there(
    client: &Client,
    settings: &Settings,
    due: &Due,
    fault: &Fault,
) -> Result<(), ControlError> {
    let counts = i32::from(fault.is_certain());
    let moved_after = i32::try_from(settings.domains.moved_after.get()).unwrap_or(i32::MAX);
    let pause = (*settings.domains.recheck_every).min(MAX_PAUSE);
    let sql = "update organization_domains set
            failures = failures + $3,
            moved_at = case when status <> 'moved' and failures + $3 >= $4 then now() else moved_at end,
            status = case
                when status = 'moved' and $5 and $3 > 0 then 'removed'
                when status = 'active' and failures + $3 >= $4 then 'moved'
                when status = 'verified' and failures + $3 >= $4 then 'pending'
                else status end,
            reason = $2, checked_at = now(), next_check_at = now() + make_interval(secs => $6), updated_at = now()
        where id = $1 and status in ('verified', 'active', 'moved')";
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&due.id, &fault.to_string(), &counts, &moved_after, &due.is_over_grace, &jittered(pause)];
    client.execute(sql, &params).await.during("writing what was seen").map(drop)
}

/// A name is proven: it is the organisation's, unless another one was first. Whoever held it and moved away holds it no
/// more.
async fn proven(client: &Client, settings: &Settings, due: &Due) -> Result<(), ControlError> {
    let status = if settings.acme.is_some() { "verified" } else { "active" };
    // Only what was checked: given up and claimed anew meanwhile, it has another proof to bring.
    let sql = "with mine as (
            select id, hostname from organization_domains
            where id = $1 and status in ('pending', 'failed') and nonce = $4 for update),
        before as (
            update organization_domains d set status = 'removed', reason = 'proven by another organisation',
                updated_at = now()
            from mine where d.hostname = mine.hostname and d.id <> mine.id and d.status = 'moved' returning d.id)
        update organization_domains d set
            status = case when $2 = 'verified' and exists (
                select 1 from certificates c where c.domain_id = d.id and c.not_after > now()) then 'active' else $2 end,
            reason = null, failures = 0, verified_at = now(),
            moved_at = null, checked_at = now(), next_check_at = now() + make_interval(secs => $3), updated_at = now()
        from mine where d.id = mine.id and (select count(*) from before) >= 0";
    let every = jittered(*settings.domains.recheck_every);
    match client.execute(sql, &[&due.id, &status, &every, &due.claim.nonce]).await {
        Ok(0) => return Ok(()),
        Ok(_) => {}
        // Two at once: the index decides.
        Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            let sql =
                "update organization_domains set status = 'failed', checked_at = now(), updated_at = now(),
                reason = 'the name is held by another organisation'
                where id = $1 and status in ('pending', 'failed') and nonce = $2";
            return client
                .execute(sql, &[&due.id, &due.claim.nonce])
                .await
                .during("writing what was seen")
                .map(drop);
        }
        Err(e) => return Err(e).during("writing what was seen"),
    }
    if settings.acme.is_some() {
        order(client, due.id).await?;
    }
    tracing::info!(hostname = %due.claim.hostname, status, "a name is proven");
    Ok(())
}

/// Seconds after which a claim has failed, and a name that moved is given up.
fn limits(settings: &Settings) -> (f64, f64) {
    (settings.domains.give_up_after.as_secs_f64(), settings.domains.grace.as_secs_f64())
}

/// Asks for a certificate, unless one is asked for already. Whoever dies before this is made up for by the next look.
async fn order(client: &Client, domain: Uuid) -> Result<(), ControlError> {
    client
        .execute(
            "insert into certificate_orders (domain_id) values ($1) on conflict (domain_id) do nothing",
            &[&domain],
        )
        .await
        .during("asking for a certificate")
        .map(drop)
}

fn due(row: &Row) -> Result<Due, ControlError> {
    let name: String = row.get("hostname");
    Ok(Due {
        id: row.get("id"),
        status: row.get("status"),
        failures: row.get("failures"),
        is_overdue: row.get("is_overdue"),
        is_over_grace: row.get("is_over_grace"),
        claim: Claim {
            hostname: Hostname::parse(&name)
                .map_err(|e| ControlError::Foreign(format!("name {name} in the master: {e}")))?,
            organization: TenantId::from_uuid(row.get("organization_id")),
            nonce: row.get("nonce"),
            target_label: row.get("target_label"),
        },
    })
}

/// For all that is asked of one name.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest pause between two checks of a name that is not proven.
const MAX_PAUSE: Duration = Duration::from_secs(6 * 3600);

fn doubled(first: Duration, times: i32, max: Duration) -> Duration {
    first.saturating_mul(1 << times.clamp(0, 20)).min(max)
}

/// In seconds, a little more or less, so that names that began together do not stay together.
fn jittered(pause: Duration) -> f64 {
    pause.as_secs_f64() * rand::random_range(0.9..1.1)
}

/// Index: primary key of the name's own row, by its id.
const DUE: &str = "select d.id, d.hostname, d.organization_id, d.status, d.failures, d.nonce, d.target_label,
    d.claimed_at < now() - make_interval(secs => $1) as is_overdue,
    coalesce(d.moved_at < now() - make_interval(secs => $2), false) as is_over_grace
    from organization_domains d";
