//! What organisations use, for bills: requests and body bytes, counted here and added to the master in batches.
//!
//! A batch has an id and is handed over until the master says that it has it; the master adds none twice. What was counted
//! since the last batch when the process is killed is lost: ten seconds' worth, in the customer's favour.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Pool;
use gmah_shared::tenant::TenantId;
use time::{Date, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What one organisation has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    requests: i64,
    bytes_in: i64,
    bytes_out: i64,
}

impl Used {
    fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }
}

/// Counts until somebody takes what was counted. An organisation that nobody asks has no entry.
#[derive(Debug)]
pub struct Usage {
    /// Several, so that workers seldom wait for one another.
    shards: [Mutex<HashMap<TenantId, Used>>; SHARDS],
}

const SHARDS: usize = 16;
/// So many organisations are handed over at once, unless one shard has more.
const PIECE: usize = 16_384;
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(10);
/// For the master to take one.
const PATIENCE: Duration = Duration::from_secs(5);

impl Default for Usage {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Usage {
    /// Counts a request that has ended.
    pub fn request(&self, tenant: TenantId, bytes_in: u64, bytes_out: u64) {
        // The last byte of an id is a random one.
        let shard = &self.shards[usize::from(tenant.as_uuid().as_bytes()[15]) % SHARDS];
        let bytes = |n| i64::try_from(n).unwrap_or(i64::MAX);
        let used = Used { requests: 1, bytes_in: bytes(bytes_in), bytes_out: bytes(bytes_out) };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.entry(tenant).or_default().add(used);
    }

    /// What was counted in as many shards as make a piece, `from` that one on.
    fn take(&self, from: &mut usize) -> Option<Batch> {
        let mut used = HashMap::new();
        while let Some(shard) = self.shards.get(*from) {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            // One shard goes over whole, however much it is.
            if !used.is_empty() && used.len() + shard.len() > PIECE {
                break;
            }
            used.extend(std::mem::take(&mut *shard));
            *from += 1;
        }
        (!used.is_empty()).then(|| Batch { id: Uuid::now_v7(), month: month(), used })
    }

    /// Hands over what was counted, for as long as the program runs and at its end. While the master is away, counts go on: their
    /// number is that of the organisations.
    pub async fn run(&self, master: Pool, stop: CancellationToken) {
        let mut pending: Option<Batch> = None;
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(EVERY) => false,
            };
            self.hand_over(&mut pending, &master).await;
            if is_last {
                // What was counted on shards that had had their turn.
                if pending.is_none() {
                    self.hand_over(&mut pending, &master).await;
                }
                return;
            }
        }
    }

    /// The same batch until it is known to be there; what is counted meanwhile is in the next.
    async fn hand_over(&self, pending: &mut Option<Batch>, master: &Pool) {
        let mut from = 0;
        loop {
            *pending = pending.take().or_else(|| self.take(&mut from));
            let Some(batch) = pending else { return };
            match tokio::time::timeout(PATIENCE, batch.add(master)).await {
                Ok(Ok(())) => *pending = None,
                Ok(Err(e)) => {
                    return tracing::warn!(error = e, "what organisations use was not written down yet");
                }
                Err(_) => return,
            }
        }
    }
}

/// The first of this month, UTC.
fn month() -> Date {
    let today = OffsetDateTime::now_utc().date();
    today.replace_day(1).unwrap_or(today)
}

/// What was counted in a while.
#[derive(Debug)]
struct Batch {
    id: Uuid,
    /// In which it was counted, however late it arrives.
    month: Date,
    used: HashMap<TenantId, Used>,
}

impl Batch {
    async fn add(&self, master: &Pool) -> Result<(), String> {
        let (mut ids, mut requests, mut bytes_in, mut bytes_out) = (vec![], vec![], vec![], vec![]);
        for (id, used) in &self.used {
            ids.push(id.as_uuid());
            requests.push(used.requests);
            bytes_in.push(used.bytes_in);
            bytes_out.push(used.bytes_out);
        }
        let client = master.get().await.map_err(|e| e.to_string())?;
        client
            .execute(ADD, &[&self.id, &ids, &requests, &bytes_in, &bytes_out, &self.month])
            .await
            .map(drop)
            .map_err(|e| e.as_db_error().map_or_else(|| e.to_string(), |d| d.message().to_owned()))
    }
}

/// Index: primary keys. In the order of the ids, so that two routers do not wait for each other in a circle.
const ADD: &str = "with old as (delete from usage_batches where added_at < now() - interval '1 day'),
    batch as (insert into usage_batches (id) values ($1) on conflict do nothing returning id)
    insert into organization_usage as u (organization_id, month, requests, bytes_in, bytes_out)
    select o.id, $6::date, n.requests, n.bytes_in, n.bytes_out
    from batch, unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[]) as n (id, requests, bytes_in, bytes_out)
    join organizations o on o.id = n.id
    order by o.id
    on conflict (organization_id, month) do update set requests = u.requests + excluded.requests,
        bytes_in = u.bytes_in + excluded.bytes_in, bytes_out = u.bytes_out + excluded.bytes_out";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_taken_once() {
        let usage = Usage::default();
        let ids: Vec<TenantId> = (0..100).map(|_| TenantId::generate()).collect();
        for (n, id) in ids.iter().enumerate() {
            usage.request(*id, n as u64, 2);
            usage.request(*id, 1, u64::MAX);
        }
        let mut from = 0;
        let batch = usage.take(&mut from).expect("a batch");
        assert_eq!(batch.used.len(), 100);
        for (n, id) in ids.iter().enumerate() {
            let want = Used { requests: 2, bytes_in: n as i64 + 1, bytes_out: i64::MAX };
            assert_eq!(batch.used[id], want);
        }
        assert!(usage.take(&mut from).is_none() && usage.take(&mut 0).is_none());
    }

    #[test]
    fn many_are_handed_over_in_pieces_while_counting_goes_on() {
        let usage = Usage::default();
        let ids: Vec<TenantId> = (0..4 * PIECE).map(|_| TenantId::generate()).collect();
        let busy = &ids[..2 * SHARDS];
        for id in &ids {
            usage.request(*id, 1, 2);
        }
        let (mut all, mut from, mut pieces) = (HashMap::new(), 0, 0);
        while let Some(batch) = usage.take(&mut from) {
            assert!((1..=PIECE).contains(&batch.used.len()), "{}", batch.used.len());
            pieces += 1;
            all.extend(batch.used);
            busy.iter().for_each(|id| usage.request(*id, 1, 2));
        }
        assert!((4..=8).contains(&pieces), "{pieces}");
        assert_eq!(all.len(), ids.len(), "every shard has had its turn");
    }
}
