//! What stands on the platform's own host, which is no organisation: the api's documentation, to be read in a browser, and
//! the admin API ([`routes`]).
//!
//! The router sends such requests here with a token for the audience `gmah-platform`, and with no other; one of those is
//! worth nothing on an organisation's host, and an organisation's is worth nothing here.

mod estate;
mod names;
mod organizations;
pub mod routes;
mod session;
mod signup;
mod support;
mod work;

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use gmah_shared::config::Settings;
use gmah_shared::hostname::Hostname;
use gmah_shared::token::{HEADER, Verifier, now_seconds};
use http::HeaderMap;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use utoipa_swagger_ui::Config;

use self::work::Work;
use crate::context;
use crate::control::config::{ControlConfig, Signup};
use crate::error::{ApiError, render};
use crate::openapi;
use crate::routes::panicked;
use crate::server::App;

/// What is asked of the platform, and how its tokens are checked.
pub struct Platform {
    host: Hostname,
    tokens: Verifier,
    document: OnceLock<Bytes>,
    work: Work,
}

impl Platform {
    /// The platform at a host. `tokens` is for its audience.
    pub fn new(tokens: Verifier, settings: &Settings, control: &ControlConfig) -> Self {
        let host = settings.platform_host.clone();
        let work = Work::new(settings.clone(), control.clone());
        Self { host, tokens, document: OnceLock::new(), work }
    }

    /// Whether a request is for it. The router writes names in their normal form, so nothing else is.
    pub(crate) fn is_asked(&self, headers: &HeaderMap) -> bool {
        let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
        match host.strip_prefix(self.host.as_str().as_bytes()) {
            Some(rest) => rest.is_empty() || rest.starts_with(b":"),
            None => false,
        }
    }

    /// Whether, and how, people make organisations by themselves.
    fn signup(&self) -> Option<&Signup> {
        self.work.config.signup.as_ref()
    }

    /// Where the link in a letter leads that confirms a sign-up, with `{token}` in it.
    fn signup_link(&self, signup: &Signup) -> String {
        let port = self.work.settings.public_https_port;
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        signup.link.clone().unwrap_or_else(|| format!("https://{}{port}/signup#token={{token}}", self.host))
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        if !self.tokens.has_keys() {
            return Err(ApiError::Unavailable);
        }
        let mut values = request.headers().get_all(HEADER).iter();
        let text = match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().map_err(|_| ApiError::InvalidTenantToken)?,
            _ => return Err(ApiError::InvalidTenantToken),
        };
        let host = self.tokens.verify_platform(text, now_seconds()).map_err(|e| {
            tracing::debug!(error = %e, "platform token");
            ApiError::InvalidTenantToken
        })?;
        if context::own_host(request) == Some(host) { Ok(()) } else { Err(ApiError::InvalidTenantToken) }
    }
}

/// The service of the platform's host.
pub fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { Redirect::to(DOCS) }))
        .route("/api/docs", get(|| async { Redirect::to(DOCS) }))
        .route(DOCS, get(|| page("index.html")))
        .route("/api/docs/{*file}", get(|Path(file): Path<String>| async move { page(&file).await }))
        .route("/api/openapi.json", get(document))
        .route("/signup", get(signup::page))
        .route("/signup/page.js", get(signup::script))
        .merge(routes::routes(app))
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
        .with_state(app.clone())
}

const DOCS: &str = "/api/docs/";

async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = context::request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let reads = request.headers().get(http::header::ACCEPT_LANGUAGE).cloned();
    let response = match app.platform.check(&request) {
        Ok(()) => tokio::time::timeout(*app.config.api.request_timeout, next.run(request))
            .await
            .unwrap_or_else(|_| ApiError::Unavailable.into_response()),
        Err(error) => {
            app.metrics.token("refused");
            error.into_response()
        }
    };
    app.metrics.route(&route, began.elapsed().as_secs_f64());
    render(response, &request_id, reads.as_ref())
}

/// Everything that there is, and where organisations are.
async fn document(State(app): State<Arc<App>>) -> Response {
    let whole = || openapi::whole(&app.names.base_authority()).to_string().into();
    let mut response = app.platform.document.get_or_init(whole).clone().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A file of the page that shows the document.
async fn page(file: &str) -> Result<Response, ApiError> {
    // It shows and asks nothing: what the document describes is at the organisations' hosts.
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        let config = Config::from("/api/openapi.json").supported_submit_methods(Vec::<String>::new());
        Arc::new(config.validator_url("none").display_request_duration(false))
    });
    let found = utoipa_swagger_ui::serve(file, CONFIG.clone()).map_err(|e| {
        tracing::error!(error = %e, "page of the documentation");
        ApiError::Internal
    })?;
    let found = found.ok_or(ApiError::NotFound)?;
    let kind = HeaderValue::from_str(&found.content_type).map_err(|_| ApiError::Internal)?;
    // Those of the program itself are not copied.
    let bytes = match found.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let mut response = bytes.into_response();
    response.headers_mut().insert(CONTENT_TYPE, kind);
    for (name, value) in GUARDS {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Nothing from elsewhere, in no frame. The page's own styles are partly written into it.
const GUARDS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600")),
];
