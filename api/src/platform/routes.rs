//! The admin API: every route under `/api/v1/admin`, and its document.
//!
//! A row's permission is the role that an administrator must have at least ([`crate::control::admins::Role`]); without one
//! every administrator may. The tests go through [`TABLE`] with every role.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post, put};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};

use super::session::{self, known};
use super::work::Begun;
use super::{estate, names, organizations, signup, support};
use crate::control::admins::Admin;
use crate::control::backup::list::Listed as Backup;
use crate::control::domains::Domain;
use crate::control::features::Listed as Module;
use crate::control::figures::Detailed;
use crate::control::operations::{Listed as Operation, Shown};
use crate::control::servers::Server;
use crate::control::tenants::{Done, Plan, Summary};
use crate::openapi;
use crate::routes::Route;
use crate::server::App;

const SUPPORT: &str = "support";
const OPERATOR: &str = "operator";
const OWNER: &str = "owner";

/// Every route.
#[rustfmt::skip]
pub const TABLE: &[Route] = &[
    Route::new("GET", "/api/v1/admin/openapi.json", "This document", || get(document)).open().gives("application/json"),
    Route::new("POST", "/api/v1/admin/auth/login", "Log in", || post(session::login)).open()
        .takes::<session::Login>().shows::<session::Token>(),
    Route::new("POST", "/api/v1/admin/auth/logout", "Log out", || post(session::logout)),
    Route::new("GET", "/api/v1/admin/auth/me", "Who is logged in", || get(session::me)).shows::<Admin>(),
    Route::new("POST", "/api/v1/admin/auth/password", "Change one's password", || post(session::change_password))
        .takes::<session::ChangePassword>(),
    Route::new("POST", "/api/v1/admin/auth/totp", "Begin a second factor", || post(session::begin_totp))
        .takes::<session::TotpBegin>().creates::<session::TotpBegun>(),
    Route::new("POST", "/api/v1/admin/auth/totp/confirm", "Confirm it", || post(session::confirm_totp))
        .takes::<session::TotpCode>(),
    Route::new("POST", "/api/v1/admin/auth/totp/end", "Go on without it", || post(session::end_totp))
        .takes::<session::TotpCode>(),

    Route::new("GET", "/api/v1/admin/administrators", "Administrators", || get(estate::administrators)).may(OWNER)
        .lists_all::<Admin>(),
    Route::new("POST", "/api/v1/admin/administrators", "Add one", || post(estate::add_administrator)).may(OWNER)
        .takes::<estate::AddAdministrator>().creates::<estate::WithPassword>(),
    Route::new("PATCH", "/api/v1/admin/administrators/{id}", "Change one", || patch(estate::change_administrator)).may(OWNER)
        .takes::<estate::ChangeAdministrator>().shows::<Admin>(),
    Route::new("POST", "/api/v1/admin/administrators/{id}/reset", "Give one another password",
        || post(estate::reset_administrator)).may(OWNER).shows::<estate::WithPassword>(),

    Route::new("GET", "/api/v1/admin/organizations", "Organisations", || get(organizations::list))
        .asks(organizations::QUERY).lists::<Summary>(),
    Route::new("POST", "/api/v1/admin/organizations", "Create one", || post(organizations::create)).may(OPERATOR)
        .takes::<organizations::Create>().begins::<Begun>(),
    Route::new("GET", "/api/v1/admin/organizations/{slug}", "One, with its figures", || get(organizations::show))
        .shows::<Detailed>(),
    Route::new("PATCH", "/api/v1/admin/organizations/{slug}", "Change its plan, limits, pools or branding",
        || patch(organizations::update)).may(OPERATOR).takes::<organizations::Update>().shows::<Summary>(),
    Route::new("GET", "/api/v1/admin/organizations/{slug}/history", "What was done to it", || get(estate::history))
        .lists_all::<Done>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/suspend", "Lock it", || post(organizations::suspend)).may(SUPPORT)
        .takes::<organizations::Suspend>().shows::<Summary>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/resume", "Unlock it", || post(organizations::resume)).may(SUPPORT)
        .shows::<Summary>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/maintenance", "Close it for work, or open it",
        || post(organizations::maintain)).may(OPERATOR).takes::<organizations::Maintain>().shows::<Summary>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/delete", "Delete it", || post(organizations::delete)).may(OPERATOR)
        .takes::<organizations::Delete>().begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/undelete", "Have it back", || post(organizations::undelete))
        .may(OPERATOR).begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/backups", "Back it up", || post(organizations::back_up))
        .may(OPERATOR).begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/restore", "Put a backup in its place",
        || post(organizations::restore)).may(OPERATOR).takes::<organizations::Restore>().begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/restore/undo", "Go back to what was before",
        || post(organizations::undo_restore)).may(OPERATOR).begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/password", "Exchange the password of its database",
        || post(organizations::rotate_password)).may(OPERATOR).begins::<Begun>(),
    Route::new("PUT", "/api/v1/admin/organizations/{slug}/modules/{module}", "Switch a module on",
        || put(names::enable_module)).may(OPERATOR).shows::<Summary>(),
    Route::new("DELETE", "/api/v1/admin/organizations/{slug}/modules/{module}", "Switch it off",
        || delete(names::disable_module)).may(OPERATOR).shows::<Summary>(),
    Route::new("GET", "/api/v1/admin/organizations/{slug}/domains", "Its own names", || get(names::domains))
        .lists_all::<Domain>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/domains", "Claim a name for it",
        || post(names::add_domain)).may(OPERATOR).takes::<names::AddDomain>().creates::<Domain>(),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/domains/{hostname}/verify", "Look at the name's zone now",
        || post(names::verify_domain)).may(OPERATOR).shows::<Domain>(),
    Route::new("DELETE", "/api/v1/admin/organizations/{slug}/domains/{hostname}", "Give a name up",
        || delete(names::remove_domain)).may(OPERATOR),
    Route::new("POST", "/api/v1/admin/organizations/{slug}/impersonations", "Look into it as one of its users",
        || post(support::impersonate)).may(SUPPORT).takes::<support::Impersonate>()
        .creates::<support::Impersonation>(),

    Route::new("GET", "/api/v1/admin/operations", "The newest operations", || get(estate::operations))
        .asks(estate::OPERATIONS).lists_all::<Operation>(),
    Route::new("GET", "/api/v1/admin/operations/{id}", "One, with its steps", || get(estate::operation)).shows::<Shown>(),
    Route::new("POST", "/api/v1/admin/operations/{id}/resume", "Go on with it", || post(estate::resume_operation))
        .may(OPERATOR).begins::<Begun>(),
    Route::new("POST", "/api/v1/admin/operations/{id}/cancel", "Give it up", || post(estate::cancel_operation)).may(OPERATOR)
        .shows::<Shown>(),
    Route::new("POST", "/api/v1/admin/migrations", "Bring schemas up to this program's", || post(estate::migrate))
        .may(OPERATOR).takes::<estate::Migrate>().begins::<Begun>(),
    Route::new("GET", "/api/v1/admin/backups", "The newest backups", || get(estate::backups)).asks(estate::NEWEST)
        .lists_all::<Backup>(),
    Route::new("POST", "/api/v1/admin/backups/{id}/verify", "Try one", || post(estate::verify_backup)).may(OPERATOR).accepts(),
    Route::new("GET", "/api/v1/admin/modules", "Modules", || get(estate::modules)).lists_all::<Module>(),
    Route::new("GET", "/api/v1/admin/plans", "Plans", || get(estate::plans)).lists_all::<Plan>(),
    Route::new("GET", "/api/v1/admin/servers", "PostgreSQL servers", || get(estate::servers)).lists_all::<Server>(),
    Route::new("POST", "/api/v1/admin/servers", "Add or change one", || post(estate::add_server)).may(OWNER)
        .takes::<estate::AddServer>(),
    Route::new("GET", "/api/v1/admin/audit", "What was done, the newest first", || get(estate::audit)).asks(estate::OF)
        .lists::<Done>(),

    Route::new("GET", "/api/v1/signup/slugs", "Slugs that a name makes", || get(signup::slugs)).open()
        .asks(signup::QUERY).shows::<signup::Proposals>(),
    Route::new("POST", "/api/v1/signup", "Ask for an organisation: a letter comes", || post(signup::create)).open()
        .takes::<signup::Create>().shows::<signup::Accepted>(),
    Route::new("POST", "/api/v1/signup/confirm", "Make it, with what is in the letter", || post(signup::confirm)).open()
        .takes::<signup::Confirm>().shows::<signup::Standing>(),
];

/// The routes, to be put beside the pages.
pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let mut router = Router::new();
    for row in TABLE {
        router = router.route(row.path, (row.handler)().layer(known(row)));
    }
    router.layer(DefaultBodyLimit::max(app.config.api.max_body_bytes.get())).layer(map_response(private))
}

/// What one administrator was told is kept by nobody.
async fn private(mut response: Response) -> Response {
    let own = HeaderValue::from_static("private, no-store");
    response.headers_mut().entry(CACHE_CONTROL).or_insert(own);
    response
}

/// 200, without a login: what there is, is no secret.
async fn document() -> Response {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    let whole = || openapi::of_platform(TABLE).to_string().into();
    let mut response = DOCUMENT.get_or_init(whole).clone().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
