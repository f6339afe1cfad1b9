//! Step 2: a [`VerifiedToken`] becomes a [`TenantContext`].
//!
//! The layer here stands before every route. It compares the token's host with the request's own, its generation
//! with the catalog, and the organisation's status with what may be served; it gives the request its deadline; and
//! on the way out it counts the response and writes the body of an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use gmah_shared::catalog::{Hit, Lookup, TenantDetail};
use gmah_shared::hostname::Hostname;
use gmah_shared::secret::SecretError;
use gmah_shared::secret::data::{DataKeys, Place};
use gmah_shared::tenant::{TenantId, TenantStatus};
use gmah_shared::token::VerifiedToken;
use http::HeaderMap;
use http::request::Parts;
use zeroize::Zeroizing;

use crate::error::{ApiError, render};
use crate::routes;
use crate::server::{App, DetailRow};
use crate::trace::Trace;

/// The organisation that a request is for. Only the layer makes one.
#[derive(Clone)]
pub struct TenantContext {
    app: Arc<App>,
    detail: Hit<DetailRow>,
    request_id: Arc<str>,
    host: Hostname,
}

impl TenantContext {
    /// Everything the process shares.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// What the catalog says of the organisation.
    pub fn detail(&self) -> &TenantDetail {
        &self.detail.0
    }

    /// An organisation for a task of the program's own; the organisation must be served.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] or [`ApiError::Unavailable`].
    pub async fn of_task(app: &Arc<App>, id: TenantId) -> Result<Self, ApiError> {
        let detail = match app.catalog.get(&id).await {
            Lookup::Found(detail) => detail,
            Lookup::Unknown => return Err(ApiError::NotFound),
            Lookup::Unavailable => return Err(ApiError::Unavailable),
        };
        if detail.0.tenant.status != TenantStatus::Active {
            return Err(ApiError::Unavailable);
        }
        let host = app.names.host_of(&detail.0.tenant.slug);
        Ok(Self { app: app.clone(), detail, request_id: "task".into(), host })
    }

    /// Whether the organisation is still served, and where it was when the request began: for what takes minutes.
    pub async fn is_current(&self) -> bool {
        let id = self.detail().tenant.id;
        let Lookup::Found(now) = self.app.catalog.get(&id).await else { return false };
        let was = &self.detail().tenant;
        now.0.tenant.generation == was.generation && now.0.tenant.status == was.status
    }

    /// The name at which the organisation was asked.
    pub fn host(&self) -> &Hostname {
        &self.host
    }

    /// Seals a value with the organisation's key.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when it has none yet.
    pub fn seal(&self, place: Place, plain: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.data_keys()?.seal(place, plain).map_err(|_| ApiError::Internal)
    }

    /// Opens a value that was sealed with the organisation's key. One that is newer than what this node knows makes it
    /// look again, for the next request.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] or [`ApiError::Internal`].
    pub fn open_sealed(&self, place: Place, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.data_keys()?.open(place, sealed).map_err(|e| {
            tracing::error!(tenant = %self.detail().tenant.slug, table = place.table, column = place.column,
                error = %e, "a sealed value does not open");
            if e != SecretError::OtherKey {
                return ApiError::Internal;
            }
            let (id, revision) = (self.detail().tenant.id, self.detail().tenant.revision);
            self.app.catalog.forget_if(&id, |row| row.0.tenant.revision <= revision);
            ApiError::Unavailable
        })
    }

    /// The organisation's keys.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when it has none yet.
    pub fn data_keys(&self) -> Result<&DataKeys, ApiError> {
        self.detail().data_keys.as_deref().ok_or_else(|| {
            tracing::error!(tenant = %self.detail().tenant.slug, "no key: `gmah tenant migrate` makes it");
            ApiError::Unavailable
        })
    }

    /// The id by which the router and the logs know the request.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The same organisation as the catalog knows it by now, if it is entered in another way than this context's row says.
    pub async fn newer(&self) -> Option<Self> {
        let Lookup::Found(detail) = self.app.catalog.get(&self.detail().tenant.id).await else { return None };
        self.changed(detail)
    }

    /// The catalog's row read anew, if the organisation is entered in another way than this context's row says.
    pub async fn reread(&self) -> Option<Self> {
        let app = &self.app;
        let (id, revision) = (self.detail().tenant.id, self.detail().tenant.revision);
        app.catalog.forget_if(&id, |row| row.0.tenant.revision <= revision);
        let Lookup::Found(detail) = app.catalog.get(&id).await else { return None };
        self.changed(detail)
    }

    fn changed(&self, detail: Hit<DetailRow>) -> Option<Self> {
        let changed = !detail.0.placement.is_same(&self.detail().placement)
            && detail.0.tenant.generation == self.detail().tenant.generation;
        changed.then(|| Self {
            app: self.app.clone(),
            detail,
            request_id: self.request_id.clone(),
            host: self.host.clone(),
        })
    }

    /// Refuses unless the organisation has that module.
    ///
    /// # Errors
    /// [`ApiError::ModuleDisabled`].
    pub fn require_module(&self, key: &'static str) -> Result<(), ApiError> {
        if self.detail().modules.iter().any(|m| m == key) {
            Ok(())
        } else {
            Err(ApiError::ModuleDisabled(key))
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TenantContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Absent only on a route that somebody put outside the layer: then nothing is served.
        parts.extensions.get::<Self>().cloned().ok_or(ApiError::InvalidTenantToken)
    }
}

/// For a route that may take as long as its body takes to come in.
const SLOW: Duration = Duration::from_secs(600);

/// The layer before every route.
pub async fn layer(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id: Arc<str> = request_id(request.headers()).into();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let is_slow = routes::is_slow(request.method().as_str(), &route);
    let deadline = if is_slow { SLOW } else { *app.config.api.request_timeout };
    // Looked at only where there is something to say.
    let reads = request.headers().get(http::header::ACCEPT_LANGUAGE).cloned();
    let mut trace = Trace::begin(&app, &request, &route);
    let handled = async {
        let token = admit(&app, &request)?;
        let context = resolve(&app, &token, &request_id).await?;
        let counters = app.metrics.tenant(&context.detail().tenant.slug);
        if let Some(trace) = &mut trace {
            trace.is_of(&context.detail().tenant.slug);
        }
        request.extensions_mut().insert(context);
        Ok((next.run(request).await, counters))
    };
    let (response, counters) = match tokio::time::timeout(deadline, handled).await {
        Ok(Ok((response, counters))) => (response, Some(counters)),
        Ok(Err(error)) => (ApiError::into_response(error), None),
        Err(_) => (ApiError::Unavailable.into_response(), None),
    };
    let status = response.status().as_u16();
    if let Some(counters) = counters {
        counters.response(status);
    }
    app.metrics.route(&route, began.elapsed().as_secs_f64());
    if let Some(trace) = trace {
        trace.end(status, &request_id);
    }
    render(response, &request_id, reads.as_ref())
}

/// The token of a request, if it is for the request's own host.
fn admit(app: &App, request: &Request) -> Result<Arc<VerifiedToken>, ApiError> {
    let token = app.tokens.check(request.headers())?;
    if own_host(request).as_ref() != Some(&token.host) {
        tracing::debug!("tenant token is for another host");
        app.metrics.token("refused");
        return Err(ApiError::InvalidTenantToken);
    }
    Ok(token)
}

async fn resolve(
    app: &Arc<App>,
    token: &VerifiedToken,
    request_id: &Arc<str>,
) -> Result<TenantContext, ApiError> {
    let detail = current(app, token).await?;
    match detail.0.tenant.status {
        // In maintenance the router mints no token of this generation but for requests that may pass all the same.
        TenantStatus::Active | TenantStatus::Maintenance => {
            let (request_id, host) = (request_id.clone(), token.host.clone());
            Ok(TenantContext { app: app.clone(), detail, request_id, host })
        }
        TenantStatus::Suspended => Err(ApiError::Suspended),
        TenantStatus::Provisioning => Err(ApiError::Unavailable),
        TenantStatus::Deleted => Err(ApiError::InvalidTenantToken),
    }
}

/// The catalog row of the token's organisation, at the token's generation.
async fn current(app: &Arc<App>, token: &VerifiedToken) -> Result<Hit<DetailRow>, ApiError> {
    let mut reloaded = false;
    loop {
        let detail = match app.catalog.get(&token.tenant).await {
            Lookup::Found(detail) => detail,
            Lookup::Unknown => return Err(ApiError::InvalidTenantToken),
            Lookup::Unavailable => return Err(ApiError::Unavailable),
        };
        let known = detail.0.tenant.generation;
        match token.generation.cmp(&known) {
            std::cmp::Ordering::Equal => return Ok(detail),
            std::cmp::Ordering::Less => return Err(ApiError::StaleGeneration(known)),
            // The router heard of a change before we did: read once more.
            std::cmp::Ordering::Greater if !reloaded => {
                reloaded = true;
                let newer = token.generation;
                app.catalog.forget_if(&token.tenant, |row| row.0.tenant.generation < newer);
            }
            std::cmp::Ordering::Greater => return Err(ApiError::Unavailable),
        }
    }
}

/// The authority of the request itself: one `Host`, or `:authority` of HTTP/2.
pub(crate) fn own_host(request: &Request) -> Option<Hostname> {
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    let raw = match (first, request.uri().authority()) {
        (Some(host), _) => host.to_str().ok()?,
        (None, Some(authority)) => authority.as_str(),
        (None, None) => return None,
    };
    Hostname::parse_authority(raw).ok()
}

/// The router's request id, if it looks like one.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    headers
        .get("x-request-id")
        .and_then(|v| v.to_str().ok())
        .filter(|id| {
            !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}
