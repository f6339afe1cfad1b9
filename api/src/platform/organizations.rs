//! Organisations, as administrators of the platform see and change them.

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::{TenantSlug, TenantStatus};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::session::{Administrator, nobody};
use super::work::{Begun, ask, begin, change};
use crate::control::admins::Role;
use crate::control::backup::restore::Order;
use crate::control::delete::Deletion;
use crate::control::edge::{EdgeSettings, Mode};
use crate::control::figures::Detailed;
use crate::control::provision::NewTenant;
use crate::control::tenants::{Listing, Summary};
use crate::control::{Control, ControlError, parse_slug};
use crate::error::ApiError;
use crate::handlers::{Body, List, Page, query};
use crate::json::Json;
use crate::language::Language;
use crate::routes::Parameter;

/// Parameters of [`list`].
pub(super) const QUERY: &[Parameter] = &[
    Parameter {
        name: "status",
        about: "Only those that stand so.",
        schema: r#"{"type": "string", "enum": ["provisioning", "active", "suspended", "maintenance"]}"#,
        is_required: false,
    },
    Parameter {
        name: "health",
        about: "Only those that were found so.",
        schema: r#"{"type": "string", "enum": ["healthy", "warning", "critical"]}"#,
        is_required: false,
    },
    Parameter {
        name: "search",
        about: "Part of a slug or a name.",
        schema: r#"{"type": "string", "minLength": 1, "maxLength": 100}"#,
        is_required: false,
    },
];

/// The query of [`list`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    limit: Option<u32>,
    cursor: Option<String>,
    status: Option<String>,
    health: Option<String>,
    search: Option<String>,
}

/// 200 with a page, in the order in which they were made.
pub(super) async fn list(
    admin: Administrator,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<List<Summary>>, ApiError> {
    let asked = query(asked)?;
    let one_of = |field: &str, value: &Option<String>, known: &[&str]| match value {
        Some(text) if !known.contains(&text.as_str()) => {
            Err(ApiError::invalid(field, &format!("one of {}", known.join(", "))))
        }
        _ => Ok(()),
    };
    one_of("status", &asked.status, &["provisioning", "active", "suspended", "maintenance"])?;
    one_of("health", &asked.health, &["healthy", "warning", "critical"])?;
    if asked.search.as_ref().is_some_and(|s| s.is_empty() || s.chars().count() > 100 || s.contains('\0')) {
        return Err(ApiError::invalid("search", "has 1 to 100 characters"));
    }
    let app = admin.app.clone();
    let wanted =
        Page::new(asked.limit, asked.cursor).check(&app.derived()?.cursors, nobody(), "organizations")?;
    let listing = Listing {
        after: wanted.after,
        status: asked.status,
        health: asked.health,
        search: asked.search,
        limit: wanted.rows(),
    };
    let found = ask(&admin, async move |control| control.tenants_page(&listing).await).await?;
    Ok(Json(wanted.page(found, |t| t.id.as_uuid())))
}

/// A slug of a path. What is none is nobody's: 404.
pub(super) fn slug(path: Result<Path<String>, PathRejection>) -> Result<TenantSlug, ApiError> {
    let Path(text) = path.map_err(|_| ApiError::NotFound)?;
    TenantSlug::parse(&text).map_err(|_| ApiError::NotFound)
}

/// 200 with the organisation, its figures and what it has used.
pub(super) async fn show(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Detailed>, ApiError> {
    let slug = slug(path)?;
    Ok(Json(ask(&admin, async move |control| control.tenant_detailed(&slug).await).await?))
}

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationCreate)]
pub(super) struct Create {
    #[schema(pattern = "^[a-z][a-z0-9-]{1,48}[a-z0-9]$")]
    slug: String,
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    #[schema(max_length = 254)]
    admin_email: String,
    #[serde(default)]
    domain: Option<String>,
    /// Default `professional`.
    #[serde(default)]
    plan: Option<String>,
    /// Default: those of the configuration.
    #[serde(default)]
    modules: Option<Vec<String>>,
    #[serde(default)]
    server: Option<String>,
}

/// 202 with the operation. Its administrator gets a letter with a link to choose a password. 409 `refused` when the slug is
/// taken.
pub(super) async fn create(
    admin: Administrator,
    body: Body<Create>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let Create { slug, name, admin_email, domain, plan, modules, server } = body.value;
    let invalid = |field: &'static str| move |e: ControlError| ApiError::invalid(field, &e.to_string());
    let slug = parse_slug(&slug).map_err(invalid("slug"))?;
    let admin_email = crate::control::parse_email(&admin_email).map_err(invalid("admin_email"))?;
    let domain = domain
        .map(|d| Hostname::parse(&d).map_err(|e| ApiError::invalid("domain", &e.to_string())))
        .transpose()?;
    if !admin.app.platform.sends_letters() {
        // Nobody would know the password that is made for the administrator.
        let why = "no letters are sent here ([mail]): gmah tenant create shows the administrator's password";
        return Err(ApiError::Refused(why.into()));
    }
    let about = json!({ "slug": slug });
    let begun = begin(
        &admin,
        async |_| Ok(None),
        about,
        async move |control| {
            let modules = modules.unwrap_or_else(|| control.settings.default_modules.clone());
            let new = NewTenant {
                slug,
                name,
                admin_email,
                admin_password: None,
                language: Some(Language::default()),
                domain,
                plan: plan.unwrap_or_else(|| "professional".into()),
                modules,
                server,
            };
            control.create_tenant(new).await.map(drop)
        },
    )
    .await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

/// Request of [`update`]. What is left out stays; `null` takes the organisation's own away.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationUpdate)]
pub(super) struct Update {
    #[serde(default)]
    plan: Option<String>,
    /// In place of the plan's numbers.
    #[serde(default)]
    #[schema(value_type = Object)]
    limits: Map<String, Value>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pools: Map<String, Value>,
    #[serde(default)]
    #[schema(value_type = Object)]
    branding: Map<String, Value>,
}

/// 200 with the organisation. Everybody goes by it within a second.
pub(super) async fn update(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Update>,
) -> Result<Json<Summary>, ApiError> {
    let slug = slug(path)?;
    let Update { plan, limits, pools, branding } = body.value;
    let mut to = EdgeSettings::default();
    for (field, kind, values) in
        [("limits", "limits", limits), ("pools", "pool", pools), ("branding", "branding", branding)]
    {
        for (name, value) in values {
            let invalid = |why: &str| ApiError::invalid(&format!("{field}.{name}"), why);
            let text = match value {
                Value::Null => "default".to_owned(),
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                _ => return Err(invalid("a number, a text or null")),
            };
            if name.contains('=') {
                return Err(invalid("is nothing that can be set"));
            }
            let one = EdgeSettings::parse(&[format!("{kind}.{name}={text}")]);
            to = to.and(one.map_err(|e| invalid(&e.to_string()))?);
        }
    }
    let name = slug.clone();
    let changed = change(&admin, &slug, async move |control| {
        if let Some(plan) = plan {
            control.set_plan(&name, &plan).await?;
        }
        if to != EdgeSettings::default() {
            control.set_edge(&name, to).await?;
        }
        control.tenant(&name).await
    });
    Ok(Json(changed.await?))
}

/// Request of [`suspend`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationSuspend)]
pub(super) struct Suspend {
    /// For operators.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// 200; its host answers 403, and all logins are over.
pub(super) async fn suspend(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Suspend>,
) -> Result<Json<Summary>, ApiError> {
    let (slug, reason) = (slug(path)?, body.value.reason);
    let name = slug.clone();
    let (to, role) = (TenantStatus::Suspended, admin.admin.role);
    let changed = change(&admin, &slug, async move |control| {
        not_worked_on(control, &name, role).await?;
        control.set_status(&name, to, Some(&reason)).await
    });
    Ok(Json(changed.await?))
}

/// 200; it is served again.
pub(super) async fn resume(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Summary>, ApiError> {
    let slug = slug(path)?;
    let name = slug.clone();
    let (to, role) = (TenantStatus::Active, admin.admin.role);
    let changed = change(&admin, &slug, async move |control| {
        not_worked_on(control, &name, role).await?;
        control.set_status(&name, to, None).await
    });
    Ok(Json(changed.await?))
}

/// What an operator has closed for work on it, an operator opens.
async fn not_worked_on(control: &Control, slug: &TenantSlug, role: Role) -> Result<(), ControlError> {
    if role < Role::Operator && control.tenant(slug).await?.maintenance.is_some() {
        return Err(ControlError::Refused(format!("{slug} is in maintenance: an operator opens it")));
    }
    Ok(())
}

/// Request of [`maintain`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationMaintenance)]
pub(super) struct Maintain {
    /// `off`, `full` (503 for everything) or `read_only`.
    mode: MaintenanceMode,
    /// What `Retry-After` says.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86400)]
    retry_after: Option<u32>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum MaintenanceMode {
    Off,
    Full,
    ReadOnly,
}

/// 200; it is closed for work on it, or open again.
pub(super) async fn maintain(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Maintain>,
) -> Result<Json<Summary>, ApiError> {
    let slug = slug(path)?;
    let retry_after = body.value.retry_after.unwrap_or(30);
    if !(1..=86_400).contains(&retry_after) {
        return Err(ApiError::invalid("retry_after", "is from 1 to 86400"));
    }
    let mode = match body.value.mode {
        MaintenanceMode::Off => Mode::Off,
        MaintenanceMode::Full => Mode::Full,
        MaintenanceMode::ReadOnly => Mode::ReadOnly,
    };
    let name = slug.clone();
    let changed = change(&admin, &slug, async move |control| {
        control.set_maintenance(&name, mode, retry_after, false).await.map(|done| done.tenant)
    });
    Ok(Json(changed.await?))
}

/// Request of [`delete`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationDelete)]
pub(super) struct Delete {
    /// The slug once more.
    confirm: String,
    /// How long it can be had back. Default 30 days.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 31536000)]
    grace_seconds: Option<u64>,
}

const GRACE: u64 = 30 * 86_400;
const MAX_GRACE: u64 = 365 * 86_400;

/// 202; its host answers 404 at once, there is a last backup, and it is destroyed when the grace is over.
pub(super) async fn delete(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Delete>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let slug = slug(path)?;
    if body.value.confirm != slug.as_str() {
        return Err(ApiError::invalid("confirm", "is not the slug"));
    }
    let grace = body.value.grace_seconds.unwrap_or(GRACE);
    if grace > MAX_GRACE {
        return Err(ApiError::invalid("grace_seconds", "is at most 31536000"));
    }
    let grace = Duration::from_secs(grace);
    operation(&admin, slug, json!({}), async move |control, slug| {
        let backup = control.has_backups();
        control.delete_tenant(&slug, Deletion { grace, backup }).await.map(drop)
    })
    .await
}

/// 202; it is had back.
pub(super) async fn undelete(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let slug = slug(path)?;
    let name = slug.clone();
    let of = async move |control: &mut Control| Ok(Some(control.any_tenant(&name).await?.id));
    let undelete = async move |control: &mut Control| control.undelete_tenant(&slug).await.map(drop);
    Ok((StatusCode::ACCEPTED, Json(begin(&admin, of, json!({}), undelete).await?)))
}

/// 202; a backup is made while everything runs.
pub(super) async fn back_up(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let slug = slug(path)?;
    operation(&admin, slug, json!({}), async |control, slug| control.backup(&slug).await.map(drop)).await
}

/// Request of [`restore`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OrganizationRestore)]
pub(super) struct Restore {
    /// The backup.
    backup_id: Uuid,
}

/// 202; a backup is put in the place of what the organisation has, which is kept for `undo`.
pub(super) async fn restore(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<Restore>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let (slug, backup) = (slug(path)?, body.value.backup_id);
    operation(&admin, slug, json!({ "backup": backup }), async move |control, slug| {
        control.restore(&slug, Order { backup, scrubbed_for: None }).await.map(drop)
    })
    .await
}

/// 202; the database that the newest restore replaced comes back.
pub(super) async fn undo_restore(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let slug = slug(path)?;
    operation(&admin, slug, json!({}), async |control, slug| control.undo_restore(&slug).await.map(drop))
        .await
}

/// 202; the organisation's database is entered with another password.
pub(super) async fn rotate_password(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let slug = slug(path)?;
    operation(&admin, slug, json!({}), async |control, slug| {
        control.rotate_role_password(&slug).await.map(drop)
    })
    .await
}

/// Begins an operation on an organisation that there is.
async fn operation<W>(
    admin: &Administrator,
    slug: TenantSlug,
    about: Value,
    work: W,
) -> Result<(StatusCode, Json<Begun>), ApiError>
where
    W: AsyncFnOnce(&mut Control, TenantSlug) -> Result<(), ControlError> + Send + 'static,
{
    let name = slug.clone();
    let of = async move |control: &mut Control| Ok(Some(control.tenant(&name).await?.id));
    let begun = begin(admin, of, about, async move |control| work(control, slug).await).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}
