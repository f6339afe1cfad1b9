//! The whole route table on one screen.
//!
//! Every route stands behind [`crate::context::layer`]: no valid tenant token, no route. What a row says of module and
//! permission is checked where the login is ([`crate::auth::Credentials`]), before a handler's first statement. The
//! isolation matrix of the tests goes through [`TABLE`] and fails when a route is missing from it.

use std::sync::{Arc, LazyLock};

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Extension, Router};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Version};
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;

mod route;

pub use route::{Access, Answers, Parameter, Route};
pub(crate) use route::{Described, Schemas};

use crate::error::ApiError;
use crate::handlers::{
    api_keys, audit, auth, csv, etag, families, files, hospitalizations, invoice_payments, invoices, loans,
    members, overview, passwords, patients, payments, roles, settings, tenant, totp, users,
};
use crate::modules::{LOANS, PATIENTS};
use crate::repo::api_keys::ApiKey;
use crate::repo::audit::Entry;
use crate::repo::families::Family;
use crate::repo::files::File;
use crate::repo::hospitalizations::Hospitalization;
use crate::repo::invoice_payments::InvoicePayment;
use crate::repo::invoices::Invoice;
use crate::repo::loans::Loan;
use crate::repo::members::Member;
use crate::repo::overview::{LoansOverview, PatientsOverview};
use crate::repo::patients::{Patient, PatientRecord};
use crate::repo::payments::Payment;
use crate::repo::roles::Role;
use crate::repo::sessions::Listed;
use crate::repo::users::User;
use crate::server::App;
use crate::settings::{CoreSettings, LoansSettings, PatientsSettings};
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
    Route::new("GET", "/api/v1/auth/sessions", "One's sessions", || get(auth::list)).personal().lists_all::<Listed>(),
    Route::new("DELETE", "/api/v1/auth/sessions/{id}", "End one of one's sessions", || delete(auth::end)).personal(),
    Route::new("POST", "/api/v1/auth/totp", "Begin a second factor", || post(totp::begin)).personal()
        .takes::<totp::TotpBegin>().creates::<totp::TotpBegun>(),
    Route::new("POST", "/api/v1/auth/totp/confirm", "Confirm it", || post(totp::confirm)).personal()
        .takes::<totp::TotpCode>().shows::<totp::RecoveryCodes>(),
    Route::new("POST", "/api/v1/auth/totp/end", "Go on without it", || post(totp::end)).personal()
        .takes::<totp::TotpCode>(),
    Route::new("GET", "/api/v1/api-keys", "One's keys for programs", || get(api_keys::list)).personal()
        .lists_all::<ApiKey>(),
    Route::new("POST", "/api/v1/api-keys", "Make a key for a program", || post(api_keys::create)).personal()
        .may("keys.write").takes::<api_keys::Create>().creates::<api_keys::Created>(),
    Route::new("DELETE", "/api/v1/api-keys/{id}", "End a key", || delete(api_keys::delete)).personal(),

    Route::new("GET", "/api/v1/users", "Users", || get(users::list)).reads().may("users.read").lists::<User>(),
    Route::new("POST", "/api/v1/users", "Add a user", || post(users::create)).may("users.write")
        .takes::<users::Create>().creates::<User>(),
    Route::new("GET", "/api/v1/users/{id}", "A user", || get(users::show)).reads().may("users.read").shows::<User>(),
    Route::new("PATCH", "/api/v1/users/{id}", "Change a user", || patch(users::update)).may("users.write")
        .takes::<users::Update>().shows::<User>(),
    Route::new("POST", "/api/v1/users/{id}/invitation", "Invite a user once more", || post(users::invite))
        .may("users.write").accepts(),
    Route::new("DELETE", "/api/v1/users/{id}/totp", "Take a user's second factor away", || delete(users::end_totp))
        .personal().may("users.write"),
    Route::new("GET", "/api/v1/roles", "Roles", || get(roles::list)).reads().may("users.read").lists_all::<Role>(),
    Route::new("POST", "/api/v1/roles", "Add a role", || post(roles::create)).may("roles.write")
        .takes::<roles::Create>().creates::<Role>(),
    Route::new("PATCH", "/api/v1/roles/{key}", "Change a role", || patch(roles::update)).may("roles.write")
        .takes::<roles::Update>().shows::<Role>(),
    Route::new("DELETE", "/api/v1/roles/{key}", "Remove a role", || delete(roles::delete)).may("roles.write"),

    Route::new("GET", "/api/v1/audit", "What was done, the newest first", || get(audit::list)).reads().may("audit.inspect")
        .asks(audit::QUERY).lists::<Entry>(),

    Route::new("GET", "/api/v1/files", "Files", || get(files::list)).reads().may("files.read").asks(files::QUERY).lists::<File>(),
    Route::new("POST", "/api/v1/files", "Bring a file", || post(files::create)).may("files.write").asks(files::ABOUT)
        .takes_file(files::MEDIA_TYPE).slow().creates::<File>(),
    Route::new("GET", "/api/v1/files/{id}", "What a file is", || get(files::show)).reads().may("files.read").shows::<File>(),
    Route::new("GET", "/api/v1/files/{id}/content", "Its bytes", || get(files::content)).may("files.read")
        .gives("*/*"),
    Route::new("DELETE", "/api/v1/files/{id}", "Remove a file", || delete(files::delete)).may("files.write"),

    Route::new("GET", "/api/v1/settings/core", "What goes for everybody", || get(settings::show::<CoreSettings>))
        .may("settings.read").shows::<CoreSettings>(),
    Route::new("PUT", "/api/v1/settings/core", "Settle what goes for everybody",
        || put(settings::replace::<CoreSettings>)).may("settings.write").takes::<CoreSettings>().shows::<CoreSettings>(),

    Route::new("GET", "/api/v1/settings/loans", "Rules of loans", || get(settings::show::<LoansSettings>)).of(LOANS)
        .may("settings.read").shows::<LoansSettings>(),
    Route::new("PUT", "/api/v1/settings/loans", "Settle the rules of loans", || put(settings::replace::<LoansSettings>))
        .of(LOANS).may("settings.write").takes::<LoansSettings>().shows::<LoansSettings>(),
    Route::new("GET", "/api/v1/overview/loans", "The society at a glance", || get(overview::loans)).of(LOANS)
        .may("loans.read").shows::<LoansOverview>(),
    Route::new("GET", "/api/v1/members", "Members", || get(members::list)).reads().of(LOANS).may("members.read")
        .asks(members::QUERY).lists::<Member>(),
    Route::new("POST", "/api/v1/members", "Add a member", || post(members::create)).of(LOANS).may("members.write")
        .takes::<members::Create>().creates::<Member>(),
    Route::new("POST", "/api/v1/members/import", "Add members out of a file", || post(members::import)).of(LOANS)
        .may("members.write").asks(csv::QUERY).takes_file(csv::MEDIA_TYPE).shows::<csv::ImportReport>(),
    Route::new("GET", "/api/v1/members/export", "All members as a file", || get(members::export_all)).of(LOANS)
        .may("members.export").gives(csv::MEDIA_TYPE),
    Route::new("GET", "/api/v1/members/{id}", "A member", || get(members::show)).reads().of(LOANS).may("members.read")
        .shows::<Member>(),
    Route::new("PATCH", "/api/v1/members/{id}", "Change a member", || patch(members::update)).of(LOANS)
        .may("members.write").takes::<members::Update>().shows::<Member>(),
    Route::new("GET", "/api/v1/families", "Families", || get(families::list)).reads().of(LOANS).may("members.read")
        .lists::<Family>(),
    Route::new("POST", "/api/v1/families", "Add a family", || post(families::create)).of(LOANS).may("members.write")
        .takes::<families::FamilyName>().creates::<Family>(),
    Route::new("GET", "/api/v1/families/{id}", "A family", || get(families::show)).reads().of(LOANS).may("members.read")
        .shows::<Family>(),
    Route::new("PATCH", "/api/v1/families/{id}", "Rename a family", || patch(families::rename)).of(LOANS)
        .may("members.write").takes::<families::FamilyName>().shows::<Family>(),
    Route::new("DELETE", "/api/v1/families/{id}", "Remove a family", || delete(families::delete)).of(LOANS)
        .may("members.write"),
    Route::new("GET", "/api/v1/loans", "Loans", || get(loans::list)).reads().of(LOANS).may("loans.read")
        .asks(loans::QUERY).lists::<Loan>(),
    Route::new("POST", "/api/v1/loans", "Draft a loan", || post(loans::create)).of(LOANS).may("loans.write")
        .takes::<loans::Create>().creates::<Loan>(),
    Route::new("GET", "/api/v1/loans/{id}", "A loan and its schedule", || get(loans::show)).reads().of(LOANS).may("loans.read")
        .shows::<loans::Shown>(),
    Route::new("POST", "/api/v1/loans/{id}/approve", "Approve a draft", || post(loans::approve)).of(LOANS)
        .may("loans.approve").shows::<Loan>(),
    Route::new("POST", "/api/v1/loans/{id}/write-off", "Give up what is missing", || post(loans::write_off)).of(LOANS)
        .may("loans.approve").shows::<Loan>(),
    Route::new("GET", "/api/v1/loans/{id}/payments", "Payments of a loan", || get(payments::list)).reads().of(LOANS)
        .may("payments.read").lists::<Payment>(),
    Route::new("POST", "/api/v1/loans/{id}/payments", "Pay out, or in", || post(payments::create)).of(LOANS)
        .may("payments.write").takes::<payments::Create>().creates::<Payment>(),
    Route::new("POST", "/api/v1/loans/{id}/payments/{payment}/reversal", "Take a payment back",
        || post(payments::reverse)).of(LOANS).may("payments.write").creates::<Payment>(),

    Route::new("GET", "/api/v1/settings/patients", "Rules of the hospital", || get(settings::show::<PatientsSettings>))
        .of(PATIENTS).may("settings.read").shows::<PatientsSettings>(),
    Route::new("PUT", "/api/v1/settings/patients", "Settle the rules of the hospital",
        || put(settings::replace::<PatientsSettings>)).of(PATIENTS).may("settings.write").takes::<PatientsSettings>()
        .shows::<PatientsSettings>(),
    Route::new("GET", "/api/v1/overview/patients", "The hospital at a glance", || get(overview::patients)).of(PATIENTS)
        .may("patients.read").shows::<PatientsOverview>(),
    Route::new("GET", "/api/v1/patients", "Patients", || get(patients::list)).of(PATIENTS).may("patients.read")
        .asks(patients::QUERY).lists::<Patient>(),
    Route::new("POST", "/api/v1/patients", "Add a patient", || post(patients::create)).of(PATIENTS)
        .may("patients.write").takes::<patients::Create>().creates::<PatientRecord>(),
    Route::new("GET", "/api/v1/patients/export", "All patients as a file", || get(patients::export_all)).of(PATIENTS)
        .may("patients.export").gives(csv::MEDIA_TYPE),
    Route::new("GET", "/api/v1/patients/{id}", "A patient's record", || get(patients::show)).of(PATIENTS)
        .may("patients.read").shows::<PatientRecord>(),
    Route::new("PATCH", "/api/v1/patients/{id}", "Change a patient", || patch(patients::update)).of(PATIENTS)
        .may("patients.write").takes::<patients::Update>().shows::<PatientRecord>(),
    Route::new("GET", "/api/v1/hospitalizations", "Who is and was in hospital", || get(hospitalizations::list))
        .of(PATIENTS).may("hospitalizations.read").asks(hospitalizations::QUERY).lists::<Hospitalization>(),
    Route::new("POST", "/api/v1/hospitalizations", "Admit a patient", || post(hospitalizations::admit)).of(PATIENTS)
        .may("hospitalizations.write").takes::<hospitalizations::Admit>().creates::<Hospitalization>(),
    Route::new("GET", "/api/v1/hospitalizations/{id}", "A stay", || get(hospitalizations::show)).of(PATIENTS)
        .may("hospitalizations.read").shows::<Hospitalization>(),
    Route::new("PATCH", "/api/v1/hospitalizations/{id}", "Move to another ward", || patch(hospitalizations::transfer))
        .of(PATIENTS).may("hospitalizations.write").takes::<hospitalizations::Transfer>().shows::<Hospitalization>(),
    Route::new("POST", "/api/v1/hospitalizations/{id}/discharge", "Let a patient go", || post(hospitalizations::discharge))
        .of(PATIENTS).may("hospitalizations.write").takes::<hospitalizations::Discharge>().shows::<Hospitalization>(),
    Route::new("GET", "/api/v1/invoices", "Invoices", || get(invoices::list)).reads().of(PATIENTS).may("invoices.read")
        .asks(invoices::QUERY).lists::<Invoice>(),
    Route::new("POST", "/api/v1/invoices", "Write an invoice", || post(invoices::create)).of(PATIENTS)
        .may("invoices.write").takes::<invoices::Create>().creates::<Invoice>(),
    Route::new("GET", "/api/v1/invoices/{id}", "An invoice", || get(invoices::show)).reads().of(PATIENTS).may("invoices.read")
        .shows::<Invoice>(),
    Route::new("POST", "/api/v1/invoices/{id}/cancel", "Cancel an unpaid invoice", || post(invoices::cancel)).of(PATIENTS)
        .may("invoices.write").shows::<Invoice>(),
    Route::new("GET", "/api/v1/invoices/{id}/payments", "Payments of an invoice", || get(invoice_payments::list)).reads()
        .of(PATIENTS).may("payments.read").lists::<InvoicePayment>(),
    Route::new("POST", "/api/v1/invoices/{id}/payments", "Pay an invoice", || post(invoice_payments::create)).of(PATIENTS)
        .may("payments.write").takes::<invoice_payments::Create>().creates::<InvoicePayment>(),
    Route::new("POST", "/api/v1/invoices/{id}/payments/{payment}/reversal", "Take it back",
        || post(invoice_payments::reverse)).of(PATIENTS).may("payments.write").creates::<InvoicePayment>(),
];

/// Texts of ours that are worth it; a file goes out as it came in, and may be compressed already.
fn is_compressible(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    (kind.starts_with(b"application/json") || kind.starts_with(b"text/csv"))
        && length.is_none_or(|n| n > SMALL)
}

/// Bytes that fit into a packet anyway.
const SMALL: u64 = 1024;

/// A handler that panics is a fault of ours, and the client's connection is not.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    ApiError::Internal.into_response()
}

/// Whether a route may take as long as its body takes to come in.
pub(crate) fn is_slow(method: &str, path: &str) -> bool {
    static SLOW: LazyLock<Vec<&Route>> = LazyLock::new(|| TABLE.iter().filter(|r| r.is_slow).collect());
    SLOW.iter().any(|r| r.method == method && r.path == path)
}

/// The service.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for row in TABLE {
        router = router.route(row.path, (row.handler)().layer(Extension(row)));
    }
    router
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(etag::layer))
        .layer(DefaultBodyLimit::max(app.config.api.max_body_bytes.get()))
        .layer(from_fn_with_state(app.clone(), context::layer))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(is_compressible))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, StatusCode};
    use tower::ServiceExt as _;

    async fn panics() -> StatusCode {
        panic!("host=10.1.2.3 password=hunter2")
    }

    /// what a panic says is for the log.
    #[tokio::test]
    async fn a18_a_panic_says_nothing() {
        let router: Router = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(panicked));
        let request = Request::get("/").body(axum::body::Body::empty()).expect("request");
        let answer = router.oneshot(request).await.expect("infallible");
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.extensions().get::<ApiError>(), Some(&ApiError::Internal));
        let answer = crate::error::render(answer, "id", None);
        let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.expect("body");
        assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
    }
}
