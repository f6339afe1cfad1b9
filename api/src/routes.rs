//! The whole route table on one screen.
//!
//! Every route stands behind [`crate::context::layer`]: no valid tenant token, no route. The isolation matrix of the
//! tests goes through [`TABLE`] and fails when a route is missing from it.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post};

use crate::context;
use crate::error::ApiError;
use crate::handlers::{auth, loans, members, patients, payments, roles, tenant, users};
use crate::modules::{LOANS, PATIENTS};
use crate::server::App;

/// What must be true before a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A valid tenant token.
    Tenant,
    /// And a login.
    User,
}

/// One route, for documentation and for the isolation matrix.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Method.
    pub method: &'static str,
    /// Path pattern.
    pub path: &'static str,
    /// Who may come in.
    pub access: Access,
    /// Module that it belongs to.
    pub module: Option<&'static str>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    access: Access,
    module: Option<&'static str>,
) -> Route {
    Route { method, path, access, module }
}

/// Every route.
pub const TABLE: &[Route] = &[
    route("GET", "/api/v1/tenant", Access::Tenant, None),
    route("POST", "/api/v1/auth/login", Access::Tenant, None),
    route("POST", "/api/v1/auth/refresh", Access::Tenant, None),
    route("POST", "/api/v1/auth/logout", Access::User, None),
    route("GET", "/api/v1/auth/me", Access::User, None),
    route("POST", "/api/v1/auth/password", Access::User, None),
    route("GET", "/api/v1/auth/sessions", Access::User, None),
    route("DELETE", "/api/v1/auth/sessions/{id}", Access::User, None),
    route("GET", "/api/v1/users", Access::User, None),
    route("POST", "/api/v1/users", Access::User, None),
    route("GET", "/api/v1/users/{id}", Access::User, None),
    route("PATCH", "/api/v1/users/{id}", Access::User, None),
    route("GET", "/api/v1/roles", Access::User, None),
    route("POST", "/api/v1/roles", Access::User, None),
    route("PATCH", "/api/v1/roles/{key}", Access::User, None),
    route("DELETE", "/api/v1/roles/{key}", Access::User, None),
    route("GET", "/api/v1/members", Access::User, Some(LOANS)),
    route("POST", "/api/v1/members", Access::User, Some(LOANS)),
    route("GET", "/api/v1/members/{id}", Access::User, Some(LOANS)),
    route("GET", "/api/v1/loans", Access::User, Some(LOANS)),
    route("POST", "/api/v1/loans", Access::User, Some(LOANS)),
    route("GET", "/api/v1/loans/{id}", Access::User, Some(LOANS)),
    route("POST", "/api/v1/loans/{id}/approve", Access::User, Some(LOANS)),
    route("POST", "/api/v1/loans/{id}/write-off", Access::User, Some(LOANS)),
    route("GET", "/api/v1/loans/{id}/payments", Access::User, Some(LOANS)),
    route("POST", "/api/v1/loans/{id}/payments", Access::User, Some(LOANS)),
    route("POST", "/api/v1/loans/{id}/payments/{payment}/reversal", Access::User, Some(LOANS)),
    route("GET", "/api/v1/patients", Access::User, Some(PATIENTS)),
    route("POST", "/api/v1/patients", Access::User, Some(PATIENTS)),
    route("GET", "/api/v1/patients/{id}", Access::User, Some(PATIENTS)),
];

/// The service.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for r in TABLE {
        router = router.route(r.path, handler(r));
    }
    router
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(app.config.api.max_body_bytes.get()))
        .layer(from_fn_with_state(app.clone(), context::layer))
        .with_state(app)
}

/// The handler of a row. A row without one does not get past the first test that builds the service.
fn handler(r: &Route) -> MethodRouter<Arc<App>> {
    match (r.method, r.path) {
        ("GET", "/api/v1/tenant") => get(tenant::show),
        ("POST", "/api/v1/auth/login") => post(auth::login),
        ("POST", "/api/v1/auth/refresh") => post(auth::refresh),
        ("POST", "/api/v1/auth/logout") => post(auth::logout),
        ("GET", "/api/v1/auth/me") => get(auth::me),
        ("POST", "/api/v1/auth/password") => post(auth::change_password),
        ("GET", "/api/v1/auth/sessions") => get(auth::list),
        ("DELETE", "/api/v1/auth/sessions/{id}") => delete(auth::end),
        ("GET", "/api/v1/users") => get(users::list),
        ("POST", "/api/v1/users") => post(users::create),
        ("GET", "/api/v1/users/{id}") => get(users::show),
        ("PATCH", "/api/v1/users/{id}") => patch(users::update),
        ("GET", "/api/v1/roles") => get(roles::list),
        ("POST", "/api/v1/roles") => post(roles::create),
        ("PATCH", "/api/v1/roles/{key}") => patch(roles::update),
        ("DELETE", "/api/v1/roles/{key}") => delete(roles::delete),
        ("GET", "/api/v1/members") => get(members::list),
        ("POST", "/api/v1/members") => post(members::create),
        ("GET", "/api/v1/members/{id}") => get(members::show),
        ("GET", "/api/v1/loans") => get(loans::list),
        ("POST", "/api/v1/loans") => post(loans::create),
        ("GET", "/api/v1/loans/{id}") => get(loans::show),
        ("POST", "/api/v1/loans/{id}/approve") => post(loans::approve),
        ("POST", "/api/v1/loans/{id}/write-off") => post(loans::write_off),
        ("GET", "/api/v1/loans/{id}/payments") => get(payments::list),
        ("POST", "/api/v1/loans/{id}/payments") => post(payments::create),
        ("POST", "/api/v1/loans/{id}/payments/{payment}/reversal") => post(payments::reverse),
        ("GET", "/api/v1/patients") => get(patients::list),
        ("POST", "/api/v1/patients") => post(patients::create),
        ("GET", "/api/v1/patients/{id}") => get(patients::show),
        (method, path) => panic!("no handler for {method} {path}"),
    }
}
