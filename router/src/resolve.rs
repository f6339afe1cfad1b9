//! Step 5: from a host to a tenant, through the catalog cache.

pub mod hot;

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use gmah_shared::catalog::{Cache, EdgeTenant, Hit, Limits, Loader, Lookup, Policy, Record, Store, Tenant};
use gmah_shared::config::Settings;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::{Generation, TenantId, TenantSlug, TenantStatus};
use gmah_shared::token::{AUDIENCE_PLATFORM, MAX_LIFE_SECONDS, Signer, now_seconds};
use http::HeaderValue;

use crate::limits::Limiters;
use crate::metrics::{Metrics, TenantSeries};
use crate::reject::Rejection;
use crate::upstream::{Pool, Pools};
use hot::{Hot, Minted, Warm};

/// How a tenant is asked for. The key of the cache, and one text, because a router keeps very many: the label of `SLUG.BASE`
/// as it is, a custom domain with the dot of the root after it, and nothing for the platform's own host, which is no tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<str>);

impl Name {
    fn slug(slug: TenantSlug) -> Self {
        Self(slug.into())
    }

    fn domain(host: &Hostname) -> Self {
        Self([host.as_str(), "."].concat().into())
    }

    fn platform() -> Self {
        Self(Box::default())
    }
}

/// A tenant, and what belongs to it at the edge. Small: a router keeps very many.
pub struct Route {
    /// The tenant.
    pub tenant: Tenant,
    /// What goes for its requests.
    pub policy: Policy,
    /// While it is asked for.
    hot: ArcSwapOption<Hot>,
}

/// A token is reused for this part of its life, so that a backend never sees one that is about to end.
const REUSE_SECONDS: u64 = MAX_LIFE_SECONDS / 2;
/// So many organisations have counters and tokens at hand: a kilobyte each. With more than that at once, many requests pay for
/// a signature.
const WARM: usize = 10_240;

impl Record for Route {
    fn id(&self) -> TenantId {
        self.tenant.id
    }

    fn revision(&self) -> i64 {
        self.tenant.revision
    }
}

/// Which tenant a request is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// How it was asked for.
    pub name: Name,
    /// On a neutral host, the target without its `tenant` parameter, if it had one.
    pub target: Option<Cow<'a, str>>,
    /// Whether the host is a neutral one.
    pub is_neutral: bool,
}

/// Resolves hosts.
pub struct Resolver {
    base: Hostname,
    platform: Hostname,
    neutral: Vec<Hostname>,
    cache: Cache<Name, Route>,
    signer: Signer,
    metrics: Arc<Metrics>,
    limiters: Limiters,
    warm: Warm<Hit<Route>>,
}

impl Resolver {
    /// A resolver over a cache made by [`Resolver::loader`].
    pub fn new(
        settings: &Settings,
        cache: Cache<Name, Route>,
        signer: Signer,
        metrics: Arc<Metrics>,
        limiters: Limiters,
    ) -> Self {
        Self {
            base: settings.base_domain.clone(),
            platform: settings.platform_host.clone(),
            neutral: settings.neutral_hosts.clone(),
            cache,
            signer,
            metrics,
            limiters,
            warm: Warm::new(WARM),
        }
    }

    /// Reads one name from the master: one indexed query.
    pub fn loader(store: Store) -> Loader<Name, Route> {
        Box::new(move |name| {
            if *name == Name::platform() {
                return Box::pin(async { Ok(Some(Route::platform())) });
            }
            let asked = match name.0.strip_suffix('.') {
                Some(host) => Hostname::parse(host).ok().map(|host| store.by_domain(host)),
                None => TenantSlug::parse(&name.0).ok().map(|slug| store.by_slug(slug)),
            };
            // Whatever else it were, nobody is called so.
            let Some(asked) = asked else { return Box::pin(async { Ok(None) }) };
            Box::pin(async move { Ok(asked.await?.map(Route::new)) })
        })
    }

    /// Whether the host is one where the request names its tenant.
    pub fn is_neutral(&self, host: &Hostname) -> bool {
        self.neutral.contains(host)
    }

    /// Which tenant a request is for, by its host alone; on a neutral host by `X-Tenant-ID` (`header`) or the
    /// `tenant` parameter of the target.
    ///
    /// # Errors
    /// [`Rejection::UnknownHost`] where nothing can be asked for, [`Rejection::TenantConflict`].
    pub fn ask<'a>(
        &self,
        host: &Hostname,
        target: &'a str,
        header: Option<&[u8]>,
    ) -> Result<Asked<'a>, Rejection> {
        if self.neutral.contains(host) {
            return neutral(target, header);
        }
        if *host == self.platform {
            return Ok(Asked { name: Name::platform(), target: None, is_neutral: false });
        }
        if *host == self.base {
            return Err(Rejection::UnknownHost);
        }
        let under_base =
            host.as_str().strip_suffix(self.base.as_str()).is_some_and(|rest| rest.ends_with('.'));
        let name = if under_base {
            let label = host.label_under(&self.base).ok_or(Rejection::UnknownHost)?;
            // What cannot be a slug belongs to nobody; the master is not asked.
            Name::slug(TenantSlug::parse(label).map_err(|_| Rejection::UnknownHost)?)
        } else {
            Name::domain(host)
        };
        Ok(Asked { name, target: None, is_neutral: false })
    }

    /// The tenant of a name that is at hand. Never waits.
    pub fn peek(&self, name: &Name) -> Option<Hit<Route>> {
        self.cache.peek(name)
    }

    /// The tenant of a name.
    ///
    /// # Errors
    /// [`Rejection::UnknownHost`] or [`Rejection::CatalogUnavailable`].
    pub async fn get(&self, name: &Name) -> Result<Hit<Route>, Rejection> {
        match self.cache.get(name).await {
            Lookup::Found(route) => Ok(route),
            Lookup::Unknown => Err(Rejection::UnknownHost),
            Lookup::Unavailable => Err(Rejection::CatalogUnavailable),
        }
    }

    /// Forgets a name, because a backend knows of a newer generation than `used`. What was read anew meanwhile stays.
    pub fn forget(&self, name: &Name, used: Generation) {
        self.cache.forget_if(name, |route| route.tenant.generation <= used);
    }

    /// The token for a tenant under the host of the request, for one pool's audience; the platform has its own.
    ///
    /// # Errors
    /// [`Rejection::NoSigningKey`].
    pub fn token(
        &self,
        route: &Route,
        hot: &Hot,
        host: &Hostname,
        pool: &Pool,
        is_neutral: bool,
    ) -> Result<HeaderValue, Rejection> {
        let audience = if route.is_platform() { AUDIENCE_PLATFORM } else { &pool.audience };
        let now = now_seconds();
        // A route has one host of its own; on a neutral host tokens are minted for each request.
        if !is_neutral
            && let Some(held) = hot.minted.load().as_deref()
            && let Some(minted) = held.iter().find(|m| *m.audience == *audience)
            // Both ends: after the clock was set back, a token would seem to come from the future.
            && (minted.issued..minted.issued + REUSE_SECONDS).contains(&now)
            && self.signer.signs_with(&minted.kid)
        {
            return Ok(minted.value.clone());
        }
        let t = &route.tenant;
        let signed = if route.is_platform() {
            self.signer.sign_platform(host, now)
        } else {
            self.signer.sign(audience, t.id, &t.slug, host, t.generation, now)
        };
        let text = signed.map_err(|e| {
            tracing::error!(error = %e, "no token");
            Rejection::NoSigningKey
        })?;
        let mut value = HeaderValue::from_str(&text).map_err(|_| Rejection::NoSigningKey)?;
        value.set_sensitive(true);
        if !is_neutral {
            let kid = self.signer.kid().unwrap_or_default();
            let minted = Minted { audience: audience.into(), value: value.clone(), kid, issued: now };
            // Two that mint at once for different pools: one of them mints once more.
            let held = hot.minted.load();
            let others = held.iter().flat_map(|h| h.iter()).filter(|m| *m.audience != *audience).cloned();
            let mut all = others.chain([minted]).collect::<Vec<_>>();
            all.shrink_to_fit();
            drop(held);
            hot.minted.store(Some(Arc::new(all)));
        }
        Ok(value)
    }

    /// What requests of a tenant share. `now` is when this one began.
    pub fn hot(&self, route: &Hit<Route>, now: Instant) -> Arc<Hot> {
        self.warm.of(route, now, |route| {
            Hot::new(self.limiters.of(route.tenant.id, route.policy.limits), self.series(route))
        })
    }

    /// The series of a tenant.
    pub fn series(&self, route: &Route) -> Arc<TenantSeries> {
        if let Some(hot) = route.hot.load().as_ref() {
            return hot.series.clone();
        }
        match route.is_platform() {
            true => self.metrics.tenants.other(),
            false => self.metrics.tenants.of(&route.tenant.slug),
        }
    }
}

impl Route {
    fn new(EdgeTenant { tenant, policy }: EdgeTenant) -> Self {
        Self { tenant, policy, hot: ArcSwapOption::empty() }
    }

    /// The platform's own host: of no organisation, and always open.
    fn platform() -> Self {
        let (id, slug) = (TenantId::from_uuid(uuid::Uuid::nil()), TenantSlug::platform());
        let (status, generation) = (TenantStatus::Active, Generation(0));
        let tenant = Tenant { id, slug, status, generation, revision: 0 };
        Self::new(EdgeTenant { tenant, policy: Policy { limits: PLATFORM_LIMITS, ..Policy::default() } })
    }

    /// Whether it is the platform's own host.
    pub fn is_platform(&self) -> bool {
        self.tenant.id.as_uuid().is_nil()
    }

    /// The pool that a path goes to. The platform is the api's, whatever the path.
    ///
    /// # Errors
    /// As [`Pools::of`].
    pub fn pool(&self, pools: &Pools, path: &str) -> Result<Arc<Pool>, Rejection> {
        if self.is_platform() {
            return pools.named(PLATFORM_POOL).ok_or(Rejection::NoRoute);
        }
        pools.of(path, self.policy.pools.as_deref())
    }
}

/// It is read without a login, and is not worth more than an organisation.
const PLATFORM_LIMITS: Limits = Limits {
    requests_per_second: NonZeroU32::new(100),
    request_burst: NonZeroU32::new(200),
    concurrent_requests: NonZeroU32::new(64),
    max_body_bytes: None,
    weight: 1,
};

/// Where the platform itself is.
const PLATFORM_POOL: &str = "api";

/// On a neutral host the header decides, failing that the parameter; both and different is a conflict.
fn neutral<'a>(target: &'a str, header: Option<&[u8]>) -> Result<Asked<'a>, Rejection> {
    let (in_query, rest) = take_parameter(target)?;
    let in_header = header.map(|h| std::str::from_utf8(h).unwrap_or("\0"));
    let slug = match (in_header, in_query.as_deref()) {
        (Some(h), Some(q)) if h != q => return Err(Rejection::TenantConflict),
        (Some(slug), _) | (None, Some(slug)) => slug,
        (None, None) => return Err(Rejection::UnknownHost),
    };
    let slug = TenantSlug::parse(slug).map_err(|_| Rejection::UnknownHost)?;
    Ok(Asked { name: Name::slug(slug), target: rest, is_neutral: true })
}

/// Takes `tenant` out of the query of a target. Twice with different values is a conflict.
fn take_parameter(target: &str) -> Result<(Option<String>, Option<Cow<'_, str>>), Rejection> {
    let Some((path, query)) = target.split_once('?') else {
        return Ok((None, None));
    };
    let mut found: Option<&str> = None;
    let mut rest: Vec<&str> = Vec::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A backend decodes names, so an encoded one is the parameter too.
        if !is_tenant_key(key) {
            rest.push(pair);
        } else if found.replace(value).is_some_and(|before| before != value) {
            return Err(Rejection::TenantConflict);
        }
    }
    let Some(found) = found else {
        return Ok((None, None));
    };
    let target =
        if rest.is_empty() { Cow::Borrowed(path) } else { format!("{path}?{}", rest.join("&")).into() };
    Ok((Some(found.to_owned()), Some(target)))
}

/// Whether a parameter's name is `tenant` once decoded.
fn is_tenant_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let mut decoded = std::iter::from_fn(|| match bytes.next()? {
        b'%' => {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            u8::try_from(high * 16 + low).ok()
        }
        b => Some(b),
    });
    b"tenant".iter().all(|b| decoded.next() == Some(*b)) && decoded.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(target: &str, header: Option<&str>) -> Result<(String, Option<String>), Rejection> {
        neutral(target, header.map(str::as_bytes)).map(|a| (a.name.0.into(), a.target.map(Cow::into_owned)))
    }

    #[test]
    fn a_name_of_one_kind_is_never_one_of_another() {
        let host = |text: &str| Hostname::parse(text).expect("host");
        let slug = |text: &str| Name::slug(TenantSlug::parse(text).expect("slug"));
        assert_ne!(Name::domain(&host("paris")), slug("paris"));
        assert_ne!(Name::platform(), Name::slug(TenantSlug::platform()));
        assert_eq!(Name::domain(&host("www.paris.example")), Name::domain(&host("WWW.Paris.example.")));
        assert_eq!(size_of::<Name>(), 16);
    }

    #[test]
    fn neutral_hosts() {
        let ok = |slug: &str, target: Option<&str>| Ok((slug.to_owned(), target.map(str::to_owned)));
        assert_eq!(ask("/x", Some("lyon")), ok("lyon", None));
        assert_eq!(ask("/x?tenant=lyon", None), ok("lyon", Some("/x")));
        assert_eq!(ask("/x?a=1&tenant=lyon&b=2", None), ok("lyon", Some("/x?a=1&b=2")));
        assert_eq!(ask("/x?tenant=lyon", Some("lyon")), ok("lyon", Some("/x")));
        assert_eq!(ask("/x?tenant=lyon&tenant=lyon", None), ok("lyon", Some("/x")));
        assert_eq!(ask("/x?tenant=lyon", Some("paris")), Err(Rejection::TenantConflict));
        assert_eq!(ask("/x?tenant=lyon&tenant=paris", None), Err(Rejection::TenantConflict));
        assert_eq!(ask("/x?%74enant=lyon", Some("paris")), Err(Rejection::TenantConflict));
        assert_eq!(ask("/x?a=1&te%6Eant=lyon", None), ok("lyon", Some("/x?a=1")));
        for (target, header) in [
            ("/x", None),
            ("/x?tenants=lyon", None),
            ("/x", Some("LYON")),
            ("/x", Some("admin")),
            ("/x?tenant=", None),
            ("/x?tenant=ly%6fn", None),
            ("/x", Some("")),
            ("/x", Some("lyon, paris")),
        ] {
            assert_eq!(ask(target, header), Err(Rejection::UnknownHost), "{target} {header:?}");
        }
    }
}
