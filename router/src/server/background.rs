//! What is read from the master again and again: keys, secrets of session tickets, proofs.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gmah_shared::catalog::holders;
use gmah_shared::catalog::listen::Topic;
use gmah_shared::catalog::{Holder, Store, StoreError};
use gmah_shared::hostname::Hostname;
use gmah_shared::secret::MasterKey;
use gmah_shared::token::Keyring;
use tokio::sync::Notify;

use crate::acme::Wake;
use crate::certs::Certificates;
use crate::certs::challenges::Challenges;
use crate::certs::tickets::Tickets;

/// Reads the keys at a notice, and now and then.
pub(super) async fn keep_keys(
    store: Store,
    holder: Holder,
    keyring: Arc<ArcSwap<Keyring>>,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        match store.refresh_keys(true).await {
            Ok(ring) => {
                keyring.store(Arc::new(ring));
                store.tell_keys(&holder, &keyring.load_full()).await;
            }
            Err(e) => tracing::warn!(error = %e, "signing keys not read"),
        }
        let pause = if keyring.load().signing().is_none() { KEYS_RETRY } else { KEYS_EVERY };
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(pause, reload.notified()).await;
    }
}

/// Whom a notice wakes.
#[derive(Default)]
pub(super) struct Topics {
    pub(super) keys: Arc<Notify>,
    pub(super) tickets: Arc<Notify>,
    pub(super) challenges: Arc<Notify>,
    pub(super) certificates: Wake,
}

impl Topics {
    pub(super) fn listener(&self) -> Box<dyn Fn(Topic) + Send + Sync> {
        let (keys, tickets) = (self.keys.clone(), self.tickets.clone());
        let (challenges, certificates) = (self.challenges.clone(), self.certificates.clone());
        Box::new(move |topic| match topic {
            Topic::Keys => keys.notify_one(),
            Topic::Tickets => tickets.notify_one(),
            Topic::Challenges => challenges.notify_one(),
            // Customers' and the base domain's are looked after by tasks of their own.
            Topic::Orders => {
                certificates.claims.notify_one();
                certificates.base_order.notify_one();
                certificates.base.notify_one();
            }
        })
    }
}

/// Reads the secrets of session tickets, and makes a new one when the newest is half a day old.
pub(super) async fn keep_tickets(
    store: Store,
    tickets: Arc<Tickets>,
    key: MasterKey,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        let kept = async {
            make_ticket_secret(&store, &key).await?;
            store.ticket_secrets().await
        };
        match tokio::time::timeout(MASTER_TIMEOUT, kept).await.unwrap_or(Err(StoreError::Timeout)) {
            Ok(secrets) => tickets.exchange(&secrets),
            Err(e) => tracing::debug!(error = %e, "secrets of session tickets not read"),
        }
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(KEYS_EVERY, reload.notified()).await;
    }
}

async fn make_ticket_secret(store: &Store, key: &MasterKey) -> Result<(), StoreError> {
    let sealed = key.seal("ticket_secrets", &rand::random::<[u8; 32]>())?;
    let client = store.pool().get().await.map_err(StoreError::Pool)?;
    // Two routers at once may both make one: all of them are read, so nothing is lost.
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&sealed];
    let made = client.execute(
        "with old as (delete from ticket_secrets where created_at < now() - interval '2 days')
         insert into ticket_secrets (secret) select $1
         where not exists (select 1 from ticket_secrets where created_at > now() - interval '12 hours')",
        &params,
    );
    made.await.map(drop).map_err(StoreError::Query)
}

/// For one round of questions to the master.
const MASTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the proofs for the certificate authority at a notice, and now and then.
pub(super) async fn keep_challenges(
    store: Store,
    challenges: Arc<Challenges>,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    loop {
        match store.challenges().await {
            Ok(proofs) => challenges.exchange(proofs),
            Err(e) => tracing::debug!(error = %e, "proofs for the certificate authority not read"),
        }
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(KEYS_EVERY, reload.notified()).await;
    }
}

/// Reads the base domain's own certificate at a notice, and now and then; `held` is what is served already.
pub(super) async fn keep_base(
    store: Store,
    certificates: Arc<Certificates>,
    base: Hostname,
    mut held: Option<String>,
    reload: Arc<Notify>,
) -> std::convert::Infallible {
    let mut said = None;
    loop {
        // Woken by a notice or by the clock; it rereads everything either way.
        let _ = tokio::time::timeout(KEYS_EVERY, reload.notified()).await;
        let fault = read_base(&store, &certificates, &base, &mut held).await.err().map(|e| e.to_string());
        // Once for as long as it is the same.
        if let Some(error) = fault.as_ref().filter(|_| fault != said) {
            tracing::error!(%error, "the base domain's certificate was not read; the old one is served on");
        }
        said = fault;
    }
}

/// Reads it once; nothing is changed where nothing has.
pub(super) async fn read_base(
    store: &Store,
    certificates: &Certificates,
    base: &Hostname,
    held: &mut Option<String>,
) -> Result<(), StoreError> {
    let asked = tokio::time::timeout(MASTER_TIMEOUT, store.base_certificate(base));
    let pair = asked.await.map_err(|_| StoreError::Timeout)??;
    let chain = pair.as_ref().map(|p| p.chain_pem.clone());
    if *held != chain {
        certificates.exchange_ordered(pair.as_ref()).map_err(|e| StoreError::Row(e.to_string()))?;
        *held = chain;
    }
    Ok(())
}

const KEYS_EVERY: Duration = holders::TOLD_EVERY;
const KEYS_RETRY: Duration = Duration::from_millis(250);
