//! Names and the port by which browsers reach organisations.

use gmah_shared::config::Settings;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantSlug;

/// Names and the port by which browsers reach organisations.
pub struct Names {
    base: Hostname,
    neutral: Vec<Hostname>,
    port: u16,
}

impl Names {
    pub(crate) fn new(settings: &Settings) -> Self {
        let neutral = settings.neutral_hosts.clone();
        Self { base: settings.base_domain.clone(), neutral, port: settings.public_https_port }
    }

    /// The name that every organisation has.
    pub fn host_of(&self, slug: &TenantSlug) -> Hostname {
        let name = format!("{slug}.{}", self.base);
        // A slug is a label and so short that only an absurd base domain leaves no room for it.
        Hostname::parse(&name).unwrap_or_else(|_| self.base.clone())
    }

    /// Whether a host is nobody's own: cookies do not get there.
    pub fn is_neutral(&self, host: &Hostname) -> bool {
        self.neutral.contains(host)
    }

    /// The authority of links to an organisation that was asked at `host`: where that is nobody's own, its own.
    pub fn authority(&self, slug: &TenantSlug, host: &Hostname) -> String {
        let own = if self.neutral.contains(host) { self.host_of(slug) } else { host.clone() };
        self.with_port(&own)
    }

    /// The authority below which every organisation has its name.
    pub fn base_authority(&self) -> String {
        self.with_port(&self.base)
    }

    fn with_port(&self, host: &Hostname) -> String {
        if self.port == 443 { host.to_string() } else { format!("{host}:{}", self.port) }
    }
}
