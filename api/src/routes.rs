//! The whole route table on one screen.
//!
//! Every route stands behind [`crate::context::layer`]: no valid tenant token, no route. What a row says of module and
//! permission is checked where the login is ([`crate::auth::Credentials`]), before a handler's first statement. The
//! isolation matrix of the tests goes through [`TABLE`] and fails when a route is missing from it.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, patch, post};
use axum::{Extension, Router};

mod route;

pub use route::{Access, Answers, Parameter, Route};
pub(crate) use route::{Described, Schemas};

use crate::error::ApiError;
use crate::handlers::{
    api_keys, audit, auth, loans, members, passwords, patients, payments, roles, tenant, totp, users,
};
use crate::modules::{LOANS, PATIENTS};
use crate::repo::api_keys::ApiKey;
use crate::repo::audit::Entry;
use crate::repo::loans::Loan;
use crate::repo::members::Member;
use crate::repo::patients::Patient;
use crate::repo::payments::Payment;
use crate::repo::roles::Role;
use crate::repo::sessions::Listed;
use crate::repo::users::User;
use crate::server::App;
use crate::{context, openapi};

/// Every route.
#[rustfmt::skip]
pub const TABLE: &[Route] = &[
    Route::new("GET", "/api/openapi.json", "This document", || get(openapi::show)).open().gives("application/json"),
    Route::new("GET", "/api/v1/tenant", "The organisation", || get(tenant::show)).open().shows::<tenant::Show>(),

    Route::new("POST", "/api/v1/auth/login", "Log in", || post(auth::login)).open()
        .takes::<auth::Login>().shows::<auth::Tokens>(),
    Route::new("POST", "/api/v1/auth/refresh", "Exchange a refresh token", || post(auth::refresh)).open()
        .takes::<auth::Refresh>().shows::<auth::Tokens>(),
    Route::new("POST", "/api/v1/auth/logout", "Log out", || post(auth::logout)).personal(),
    Route::new("GET", "/api/v1/auth/me", "Who is logged in", || get(auth::me)).shows::<User>(),
    Route::new("POST", "/api/v1/auth/password", "Change one's password", || post(passwords::change)).personal()
        .takes::<passwords::ChangePassword>(),
    Route::new("POST", "/api/v1/auth/password/forgotten", "Ask for a letter", || post(passwords::forgotten)).open()
        .takes::<passwords::ForgottenPassword>().accepts(),
    Route::new("POST", "/api/v1/auth/password/set", "Choose a password, with a link", || post(passwords::set)).open()
        .takes::<passwords::SetPassword>(),
    Route::new("GET", "/api/v1/auth/sessions", "One's sessions", || get(auth::list)).personal().lists::<Listed>(),
    Route::new("DELETE", "/api/v1/auth/sessions/{id}", "End one of one's sessions", || delete(auth::end)).personal(),
    Route::new("POST", "/api/v1/auth/totp", "Begin a second factor", || post(totp::begin)).personal()
        .creates::<totp::TotpBegun>(),
    Route::new("POST", "/api/v1/auth/totp/confirm", "Confirm it", || post(totp::confirm)).personal()
        .takes::<totp::TotpCode>().shows::<totp::RecoveryCodes>(),
    Route::new("POST", "/api/v1/auth/totp/end", "Go on without it", || post(totp::end)).personal()
        .takes::<totp::TotpCode>(),
    Route::new("GET", "/api/v1/api-keys", "One's keys for programs", || get(api_keys::list)).personal()
        .lists::<ApiKey>(),
    Route::new("POST", "/api/v1/api-keys", "Make a key for a program", || post(api_keys::create)).personal()
        .may("keys.write").takes::<api_keys::Create>().creates::<api_keys::Created>(),
    Route::new("DELETE", "/api/v1/api-keys/{id}", "End a key", || delete(api_keys::delete)).personal(),

    Route::new("GET", "/api/v1/users", "Users", || get(users::list)).may("users.read").lists::<User>(),
    Route::new("POST", "/api/v1/users", "Add a user", || post(users::create)).may("users.write")
        .takes::<users::Create>().creates::<User>(),
    Route::new("GET", "/api/v1/users/{id}", "A user", || get(users::show)).may("users.read").shows::<User>(),
    Route::new("PATCH", "/api/v1/users/{id}", "Change a user", || patch(users::update)).may("users.write")
        .takes::<users::Update>().shows::<User>(),
    Route::new("POST", "/api/v1/users/{id}/invitation", "Invite a user once more", || post(users::invite))
        .may("users.write").accepts(),
    Route::new("GET", "/api/v1/roles", "Roles", || get(roles::list)).may("users.read").lists::<Role>(),
    Route::new("POST", "/api/v1/roles", "Add a role", || post(roles::create)).may("roles.write")
        .takes::<roles::Create>().creates::<Role>(),
    Route::new("PATCH", "/api/v1/roles/{key}", "Change a role", || patch(roles::update)).may("roles.write")
        .takes::<roles::Update>().shows::<Role>(),
    Route::new("DELETE", "/api/v1/roles/{key}", "Remove a role", || delete(roles::delete)).may("roles.write"),

    Route::new("GET", "/api/v1/audit", "What was done, the newest first", || get(audit::list)).may("audit.inspect")
        .asks(audit::QUERY).lists::<Entry>(),

    Route::new("GET", "/api/v1/members", "Members", || get(members::list)).of(LOANS).may("members.read")
        .lists::<Member>(),
    Route::new("POST", "/api/v1/members", "Add a member", || post(members::create)).of(LOANS).may("members.write")
        .takes::<members::Create>().creates::<Member>(),
    Route::new("GET", "/api/v1/members/{id}", "A member", || get(members::show)).of(LOANS).may("members.read")
        .shows::<Member>(),
    Route::new("GET", "/api/v1/loans", "Loans", || get(loans::list)).of(LOANS).may("loans.read").lists::<Loan>(),
    Route::new("POST", "/api/v1/loans", "Draft a loan", || post(loans::create)).of(LOANS).may("loans.write")
        .takes::<loans::Create>().creates::<Loan>(),
    Route::new("GET", "/api/v1/loans/{id}", "A loan and its schedule", || get(loans::show)).of(LOANS).may("loans.read")
        .shows::<loans::Shown>(),
    Route::new("POST", "/api/v1/loans/{id}/approve", "Approve a draft", || post(loans::approve)).of(LOANS)
        .may("loans.approve").shows::<Loan>(),
    Route::new("POST", "/api/v1/loans/{id}/write-off", "Give up what is missing", || post(loans::write_off)).of(LOANS)
        .may("loans.approve").shows::<Loan>(),
    Route::new("GET", "/api/v1/loans/{id}/payments", "Payments of a loan", || get(payments::list)).of(LOANS)
        .may("payments.read").lists::<Payment>(),
    Route::new("POST", "/api/v1/loans/{id}/payments", "Pay out, or in", || post(payments::create)).of(LOANS)
        .may("payments.write").takes::<payments::Create>().creates::<Payment>(),
    Route::new("POST", "/api/v1/loans/{id}/payments/{payment}/reversal", "Take a payment back",
        || post(payments::reverse)).of(LOANS).may("payments.write").creates::<Payment>(),

    Route::new("GET", "/api/v1/patients", "Patients", || get(patients::list)).of(PATIENTS).may("patients.read")
        .lists::<Patient>(),
    Route::new("POST", "/api/v1/patients", "Add a patient", || post(patients::create)).of(PATIENTS)
        .may("patients.write").takes::<patients::Create>().creates::<Patient>(),
    Route::new("GET", "/api/v1/patients/{id}", "A patient", || get(patients::show)).of(PATIENTS).may("patients.read")
        .shows::<Patient>(),
];

/// The service.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for row in TABLE {
        router = router.route(row.path, (row.handler)().layer(Extension(row)));
    }
    router
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(app.config.api.max_body_bytes.get()))
        .layer(from_fn_with_state(app.clone(), context::layer))
        .with_state(app)
}
