//! What a reload exchanges, as a whole.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{Limits, Proxies};
use crate::headers::Promises;
use crate::upstream::Pools;

/// Everything that goes for connections and requests that begin now. Whoever began before goes on under what was then.
pub struct Live {
    /// Bounds of clients.
    pub limits: Limits,
    /// Who may speak for others.
    pub proxies: Proxies,
    /// What every response says.
    pub promises: Arc<Promises>,
    /// Where requests go.
    pub pools: Pools,
}

/// A handle on it.
pub type Handle = Arc<ArcSwap<Live>>;
