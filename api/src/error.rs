//! What a client may read of an error: one table from [`ApiError`] to status, code and title.
//!
//! Causes stay in the log. The body is `application/problem+json` (RFC 9457) and is written by [`render`], which
//! knows the request id.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use http::{HeaderName, StatusCode};

use gmah_shared::tenant::Generation;

use crate::db::DbError;
use crate::language::Language;
use crate::pool::PoolError;
use crate::pool::breaker::Failure;

/// Tells the router that its token is older than the catalog.
pub const STALE_HEADER: HeaderName = HeaderName::from_static("x-gmah-stale");

/// Every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// No valid `X-Tenant-Token`; which check failed is for the log.
    InvalidTenantToken,
    /// The token is older than the catalog, which is at this generation.
    StaleGeneration(Generation),
    /// The organisation is suspended.
    Suspended,
    /// Provisioning, maintenance, or no database, for now.
    Unavailable,
    /// The organisation's database is not at a schema that this program serves.
    SchemaUnsupported,
    /// No valid login.
    Unauthenticated,
    /// E-mail and password do not belong together; which of them is wrong is not said.
    BadCredentials,
    /// The password is right, and a code is missing.
    TotpRequired,
    /// Nothing shows that our own page asked for a change.
    CsrfFailed,
    /// The link was used, is over, or never was.
    LinkInvalid,
    /// Logged in, but not allowed to.
    Forbidden,
    /// No such route, no such row, or a row of somebody else.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// The route belongs to a module that this organisation has not.
    ModuleDisabled(&'static str),
    /// Not JSON, or a parameter that cannot be read.
    Malformed(String),
    /// Readable, but breaks a rule: the field's path and the rule.
    Invalid {
        /// Path of the field, dotted.
        field: String,
        /// The rule.
        message: String,
    },
    /// It is not any more as `If-Match` says.
    PreconditionFailed,
    /// Lines of a file that break rules.
    Import(Vec<LineError>),
    /// The body's media type is not JSON.
    UnsupportedMediaType,
    /// Over the limit of a body.
    TooLarge,
    /// The key was used for another request.
    IdempotencyKeyReused,
    /// Something that there is, or would not be any more, is in the way.
    Conflict(Conflict),
    /// The control plane does not do it here and now: why, for an administrator of the platform.
    Refused(String),
    /// Too many logins failed.
    TooManyAttempts {
        /// Seconds after which the next may be tried.
        seconds: u32,
    },
    /// The plan's number is reached.
    PlanLimit {
        /// Which number.
        limit: &'static str,
        /// What the plan allows.
        allowed: i64,
        /// What there is.
        current: i64,
        /// The plan.
        plan: String,
    },
    /// Ours. The cause has been logged.
    Internal,
}

/// A rule that a line of a file breaks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct LineError {
    /// Line, from 1; that of the names is the first.
    pub line: u64,
    /// Column, by its name.
    pub field: String,
    /// The rule.
    pub message: String,
}

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Another user has that e-mail address.
    EmailTaken,
    /// There is a role of that key, or there are a hundred.
    RoleTaken,
    /// Users have that role.
    RoleInUse,
    /// Every organisation has that role.
    RoleBuiltin,
    /// Nobody would be left who may do everything.
    LastAdministrator,
    /// The loan does not stand where this can be done.
    LoanStatus,
    /// The payment is taken back already, or takes back another.
    PaymentReversed,
    /// More would have come back than went out.
    PaymentNeeded,
    /// A second factor is asked for already.
    TotpActive,
    /// There is no second factor that could be confirmed.
    TotpNotBegun,
    /// The user has as many keys as one may have.
    TooManyKeys,
    /// The user is disabled.
    UserDisabled,
    /// A letter has just been written.
    LinkRecent,
    /// Fewer members answer for the loan than the organisation asks for.
    TooFewGuarantors,
    /// The loan is larger, or runs longer, than the organisation allows by now.
    LoanRules,
    /// The member has as many loans as one may have.
    TooManyLoans,
    /// Members belong to that family.
    FamilyInUse,
    /// Another patient has that national id.
    NationalIdTaken,
    /// The patient is in hospital already.
    AlreadyAdmitted,
    /// The patient has left.
    Discharged,
    /// What the request goes by is not there any more, or something is there that was not.
    Meanwhile,
    /// The invoice is cancelled, or something was paid.
    InvoiceStatus,
    /// Another organisation has that slug.
    SlugTaken,
}

impl Conflict {
    fn code_and_title(self) -> (&'static str, &'static str) {
        match self {
            Self::EmailTaken => ("email_taken", "Another user has this e-mail address."),
            Self::RoleTaken => ("role_taken", "There is such a role already."),
            Self::RoleInUse => ("role_in_use", "Users have this role."),
            Self::RoleBuiltin => ("role_builtin", "This role cannot be changed."),
            Self::LoanStatus => ("loan_status", "The loan's status does not allow this."),
            Self::PaymentReversed => ("payment_reversed", "This payment cannot be reversed any more."),
            Self::PaymentNeeded => ("payment_needed", "What was repaid since has to be reversed first."),
            Self::TotpActive => ("totp_active", "There is a second factor already."),
            Self::TotpNotBegun => ("totp_not_begun", "There is no second factor to confirm."),
            Self::TooManyKeys => ("too_many_keys", "There are as many keys as one may have."),
            Self::LinkRecent => ("link_recent", "A letter has just been written."),
            Self::UserDisabled => ("user_disabled", "This user is disabled."),
            Self::Meanwhile => ("changed_meanwhile", "Somebody else was faster. Please look again."),
            Self::TooFewGuarantors => ("too_few_guarantors", "More members must answer for this loan."),
            Self::LoanRules => ("loan_rules", "The organisation's rules do not allow this loan."),
            Self::TooManyLoans => ("too_many_loans", "The member has as many loans as one may have."),
            Self::FamilyInUse => ("family_in_use", "Members belong to this family."),
            Self::NationalIdTaken => ("national_id_taken", "Another patient has this national id."),
            Self::AlreadyAdmitted => ("already_admitted", "The patient is in hospital already."),
            Self::Discharged => ("discharged", "The patient has left."),
            Self::SlugTaken => ("slug_taken", "Another organisation has this address."),
            Self::InvoiceStatus => ("invoice_status", "The invoice's status does not allow this."),
            Self::LastAdministrator => ("last_administrator", "There must be one administrator at least."),
        }
    }
}

impl ApiError {
    /// A field that breaks a rule.
    pub fn invalid(field: &str, message: &str) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// Status, code and title.
    pub fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::InvalidTenantToken => {
                (StatusCode::UNAUTHORIZED, "invalid_tenant_token", "The request has no valid tenant token.")
            }
            Self::StaleGeneration(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stale_generation", "Please try again.")
            }
            Self::Suspended => {
                (StatusCode::FORBIDDEN, "organization_suspended", "This organisation is suspended.")
            }
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The service is not available right now.")
            }
            Self::SchemaUnsupported => (
                StatusCode::SERVICE_UNAVAILABLE,
                "schema_unsupported",
                "This organisation is being brought up to date.",
            ),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "Please log in."),
            Self::BadCredentials => {
                (StatusCode::UNAUTHORIZED, "bad_credentials", "E-mail or password is wrong.")
            }
            Self::TotpRequired => {
                (StatusCode::UNAUTHORIZED, "totp_required", "A code of your second factor is needed.")
            }
            Self::CsrfFailed => {
                (StatusCode::FORBIDDEN, "csrf_failed", "The request does not come from a page of ours.")
            }
            Self::LinkInvalid => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "link_invalid",
                "This link does not work, or not any more.",
            ),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "You may not do this."),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is nothing here."),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This method is not allowed here.")
            }
            Self::ModuleDisabled(_) => {
                (StatusCode::NOT_FOUND, "module_disabled", "This module is not enabled here.")
            }
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read."),
            Self::Invalid { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request breaks a rule.")
            }
            Self::PreconditionFailed => (
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                "It was changed by somebody else meanwhile.",
            ),
            Self::Import(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "import_invalid", "The file has lines that break a rule.")
            }
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body is not of the media type that is taken here.",
            ),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is too large."),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request.",
            ),
            Self::Conflict(conflict) => {
                let (code, title) = conflict.code_and_title();
                (StatusCode::CONFLICT, code, title)
            }
            Self::Refused(_) => (StatusCode::CONFLICT, "refused", "This cannot be done here and now."),
            Self::TooManyAttempts { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_attempts",
                "Too many attempts. Please try again later.",
            ),
            Self::PlanLimit { .. } => {
                (StatusCode::CONFLICT, "plan_limit_reached", "The plan's limit is reached.")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong."),
        }
    }

    /// Seconds after which another try makes sense.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::TooManyAttempts { seconds } => Some(*seconds),
            _ if self.parts().0 == StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }

    fn body(&self, request_id: &str, language: Language) -> serde_json::Value {
        let (status, code, english) = self.parts();
        let title = language.title(code).unwrap_or(english);
        let mut body = serde_json::json!({
            "type": format!("about:blank#{code}"), "title": title, "status": status.as_u16(), "code": code,
            "request_id": request_id,
        });
        match self {
            Self::Malformed(detail) | Self::Refused(detail) => body["detail"] = detail.as_str().into(),
            Self::Invalid { field, message } => {
                body["field"] = field.as_str().into();
                body["detail"] = message.as_str().into();
            }
            Self::Import(errors) => body["errors"] = serde_json::json!(errors),
            Self::ModuleDisabled(module) => body["module"] = (*module).into(),
            Self::PlanLimit { limit, allowed, current, plan } => {
                body["limit"] = (*limit).into();
                body["allowed"] = (*allowed).into();
                body["current"] = (*current).into();
                body["plan"] = plan.as_str().into();
            }
            _ => {}
        }
        body
    }
}

impl IntoResponse for ApiError {
    /// The body is left to [`render`], which every response passes.
    fn into_response(self) -> Response {
        let mut response = self.parts().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the body of an error, if the response is one.
pub fn render(response: Response, request_id: &str, reads: Option<&HeaderValue>) -> Response {
    let Some(error) = response.extensions().get::<ApiError>().cloned() else {
        return response;
    };
    let reads = reads.and_then(|v| v.to_str().ok());
    let language = reads.map_or_else(Language::default, Language::preferred);
    let (mut parts, _) = response.into_parts();
    parts.status = error.parts().0;
    parts.headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-store"));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
    parts.headers.append(VARY, HeaderValue::from_static("accept-language"));
    parts.headers.remove(http::header::CONTENT_LENGTH);
    if let Some(seconds) = error.retry_after() {
        parts.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let ApiError::StaleGeneration(current) = &error {
        parts.headers.insert(STALE_HEADER, HeaderValue::from(current.0));
    }
    Response::from_parts(parts, Body::from(error.body(request_id, language).to_string()))
}

impl From<PoolError> for ApiError {
    fn from(error: PoolError) -> Self {
        // Logged where it happened, with its tenant.
        match error {
            PoolError::Superseded(current) => Self::StaleGeneration(current),
            PoolError::Schema | PoolError::Resting(Failure::Schema) => Self::SchemaUnsupported,
            PoolError::Queue
            | PoolError::Wait
            | PoolError::Resting(_)
            | PoolError::Authentication(_)
            | PoolError::Silent
            | PoolError::Connect(_)
            | PoolError::WrongDatabase
            | PoolError::Closed => Self::Unavailable,
        }
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        if let DbError::NoConnection(why) = error {
            return why.into();
        }
        if error.is_unstorable() {
            return Self::Malformed("a text holds what no text may hold".into());
        }
        if error.is_race() {
            tracing::debug!(error = %error.chain(), "somebody else was faster");
            return Self::Conflict(Conflict::Meanwhile);
        }
        if error.is_unavailable() {
            tracing::warn!(error = %error.chain(), "tenant database gave no answer");
            Self::Unavailable
        } else {
            tracing::error!(error = %error.chain(), "tenant database refused a statement");
            Self::Internal
        }
    }
}
