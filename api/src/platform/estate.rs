//! What the platform has beside organisations: operations, backups, servers, plans, modules, administrators, and what was done.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use http::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::organizations::slug;
use super::session::{Administrator, nobody};
use super::work::{Begun, act, ask, begin, leave};
use crate::control::admins::{Admin, AdminChange, Role};
use crate::control::backup::list::Listed as Backup;
use crate::control::features::Listed as Module;
use crate::control::fleet::Fleet;
use crate::control::operations::{Listed as Operation, Shown};
use crate::control::servers::{NewServer, Server};
use crate::control::tenants::{Done, Plan};
use crate::control::{Control, ControlError, parse_slug};
use crate::error::ApiError;
use crate::handlers::{Body, List, Page, query};
use crate::json::Json;
use crate::routes::Parameter;

/// An id in a path. What is none is nobody's: 404.
fn id(path: Result<Path<String>, PathRejection>) -> Result<Uuid, ApiError> {
    let Path(text) = path.map_err(|_| ApiError::NotFound)?;
    Uuid::try_parse(&text).map_err(|_| ApiError::NotFound)
}

/// Where the control plane says `Refused` because there is none of that id.
fn gone(e: ApiError) -> ApiError {
    match e {
        ApiError::Refused(why) if why.starts_with("there is no ") => ApiError::NotFound,
        other => other,
    }
}

const LIMIT: Parameter = Parameter {
    name: "limit",
    about: "Most of them, the newest.",
    schema: r#"{"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}"#,
    is_required: false,
};
const SLUG: Parameter = Parameter {
    name: "organization",
    about: "Only of the organisation with this slug.",
    schema: r#"{"type": "string", "pattern": "^[a-z][a-z0-9-]{1,48}[a-z0-9]$"}"#,
    is_required: false,
};

/// Parameters of [`operations`].
pub(super) const OPERATIONS: &[Parameter] = &[
    LIMIT,
    SLUG,
    Parameter {
        name: "unfinished",
        about: "Only those that are to be gone on with.",
        schema: r#"{"type": "boolean"}"#,
        is_required: false,
    },
];
/// Parameters of [`backups`].
pub(super) const NEWEST: &[Parameter] = &[LIMIT, SLUG];
/// Parameters of [`audit`].
pub(super) const OF: &[Parameter] = &[SLUG];

/// A query for the newest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Newest {
    limit: Option<u16>,
    organization: Option<String>,
    #[serde(default)]
    unfinished: bool,
}

impl Newest {
    fn check(self) -> Result<(u16, Option<gmah_shared::tenant::TenantSlug>, bool), ApiError> {
        let limit = self.limit.unwrap_or(100);
        if !(1..=1000).contains(&limit) {
            return Err(ApiError::invalid("limit", "must be from 1 to 1000"));
        }
        let slug = self.organization.map(|s| parse_slug(&s)).transpose();
        Ok((limit, slug.map_err(|e| ApiError::invalid("organization", &e.to_string()))?, self.unfinished))
    }
}

/// 200 with the newest operations.
pub(super) async fn operations(
    admin: Administrator,
    asked: Result<Query<Newest>, QueryRejection>,
) -> Result<Json<List<Operation>>, ApiError> {
    let (limit, slug, unfinished) = query(asked)?.check()?;
    let found =
        ask(&admin, async move |control| control.operations(slug.as_ref(), unfinished, limit).await).await?;
    Ok(Json(List::all(found)))
}

/// 200 with an operation and its steps.
pub(super) async fn operation(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let id = id(path)?;
    ask(&admin, async move |control| control.operation(id).await).await.map(Json).map_err(gone)
}

/// 202; one that was left unfinished is gone on with. 409 `refused` when there is nothing to go on with, and of an exchange of the
/// platform's keys.
pub(super) async fn resume_operation(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let id = id(path)?;
    let of = async move |control: &mut Control| {
        control.is_of_no_platform_key(id).await?;
        control.organization_of(id).await
    };
    let begun = begin(&admin, of, json!({ "resumed": id }), async move |control| {
        control.resume_operation(id).await.map(drop)
    });
    Ok((StatusCode::ACCEPTED, Json(begun.await.map_err(gone)?)))
}

/// 200; one that was left unfinished is given up, and what it had made is removed. 409 `refused` of an exchange of the platform's keys.
pub(super) async fn cancel_operation(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let id = id(path)?;
    let cancel = async move |control: &mut Control| {
        control.is_of_no_platform_key(id).await?;
        control.cancel_operation(id).await
    };
    act(&admin, json!({ "cancelled": id }), cancel).await.map(Json).map_err(gone)
}

/// 200 with the newest backups.
pub(super) async fn backups(
    admin: Administrator,
    asked: Result<Query<Newest>, QueryRejection>,
) -> Result<Json<List<Backup>>, ApiError> {
    let (limit, slug, _) = query(asked)?.check()?;
    let found = ask(&admin, async move |control| control.backups(slug.as_ref(), limit).await).await?;
    Ok(Json(List::all(found)))
}

/// 202; the backup is restored for a trial, beside everything, and `verified_at` says when it was.
pub(super) async fn verify_backup(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let id = id(path)?;
    ask(&admin, async move |control| control.manifest_of(id).await.map(drop)).await.map_err(gone)?;
    leave(&admin, json!({ "backup": id }), async move |control| control.verify_backup(id).await.map(drop))
        .await?;
    Ok(StatusCode::ACCEPTED)
}

/// 200 with every module.
pub(super) async fn modules(admin: Administrator) -> Result<Json<List<Module>>, ApiError> {
    Ok(Json(List::all(ask(&admin, async |control| control.modules(None).await).await?)))
}

/// 200 with every plan, the smallest first.
pub(super) async fn plans(admin: Administrator) -> Result<Json<List<Plan>>, ApiError> {
    Ok(Json(List::all(ask(&admin, async |control| control.plans().await).await?)))
}

/// 200 with every server.
pub(super) async fn servers(admin: Administrator) -> Result<Json<List<Server>>, ApiError> {
    Ok(Json(List::all(ask(&admin, async |control| control.servers().await).await?)))
}

/// Request of [`add_server`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DatabaseServerAdd)]
pub(super) struct AddServer {
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: String,
    /// Hosts, of which one takes writes.
    #[schema(min_length = 1, max_length = 1000)]
    host: String,
    #[serde(default)]
    #[schema(minimum = 1, maximum = 65535)]
    port: Option<u16>,
    /// TLS that is verified.
    #[serde(default)]
    tls: Option<bool>,
    /// Authorities that it trusts, as PEM; the system's otherwise.
    #[serde(default)]
    tls_ca: Option<String>,
    #[schema(min_length = 1, max_length = 63)]
    admin_user: String,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    admin_password: Option<SecretString>,
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000000)]
    max_databases: Option<i32>,
    #[serde(default)]
    replica_of: Option<String>,
}

/// 204, after it was entered.
pub(super) async fn add_server(admin: Administrator, body: Body<AddServer>) -> Result<StatusCode, ApiError> {
    let b = body.value;
    let max_databases = b.max_databases.unwrap_or(1000);
    if !(1..=1_000_000).contains(&max_databases) {
        return Err(ApiError::invalid("max_databases", "must be from 1 to 1000000"));
    }
    let about = json!({ "server": b.name, "host": b.host });
    let new = NewServer {
        name: b.name,
        host: b.host,
        port: b.port.unwrap_or(5432),
        tls: b.tls,
        tls_ca: b.tls_ca,
        admin_user: b.admin_user,
        admin_password: b.admin_password,
        max_databases,
        replica_of: b.replica_of,
    };
    if b.port == Some(0) {
        return Err(ApiError::invalid("port", "must be from 1 to 65535"));
    }
    let added = act(&admin, about, async move |control| control.add_server(new).await).await;
    added.map_err(|e| match e {
        ApiError::Unavailable => ApiError::Refused("the server does not answer".into()),
        other => other,
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Request of [`migrate`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FleetMigrate)]
pub(super) struct Migrate {
    /// Slugs; all that are behind, when left out.
    #[serde(default)]
    organizations: Option<Vec<String>>,
    /// So many first, of which none may fail.
    #[serde(default)]
    #[schema(maximum = 1000)]
    canaries: Option<u16>,
    /// At once on each server.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 64)]
    parallel: Option<u16>,
}

/// 202; schemas are brought up to this program's.
pub(super) async fn migrate(
    admin: Administrator,
    body: Body<Migrate>,
) -> Result<(StatusCode, Json<Begun>), ApiError> {
    let Migrate { organizations, canaries, parallel } = body.value;
    if parallel.is_some_and(|n| !(1..=64).contains(&n)) {
        return Err(ApiError::invalid("parallel", "must be from 1 to 64"));
    }
    let usual = Fleet::default();
    let parallel = parallel.map_or(usual.parallel, usize::from);
    let slugs = organizations
        .map(|all| all.iter().map(|s| parse_slug(s)).collect::<Result<Vec<_>, ControlError>>())
        .transpose()
        .map_err(|e| ApiError::invalid("organizations", &e.to_string()))?;
    let fleet = Fleet { parallel, canaries: canaries.unwrap_or(0).into(), ..usual };
    let about = json!({ "organizations": slugs });
    let begun = begin(
        &admin,
        async |_| Ok(None),
        about,
        async move |control| {
            let tenants = match slugs {
                Some(slugs) => {
                    let mut found = Vec::new();
                    for slug in &slugs {
                        found.push(control.tenant(slug).await?);
                    }
                    found
                }
                None => control.migratable().await?,
            };
            control.migrate_fleet(tenants, fleet, |_| {}).await.map(drop)
        },
    );
    Ok((StatusCode::ACCEPTED, Json(begun.await?)))
}

/// The query of [`audit`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditOf {
    limit: Option<u32>,
    cursor: Option<String>,
    organization: Option<String>,
}

/// 200 with what was done, the newest first.
pub(super) async fn audit(
    admin: Administrator,
    asked: Result<Query<AuditOf>, QueryRejection>,
) -> Result<Json<List<Done>>, ApiError> {
    let asked = query(asked)?;
    let of = asked.organization.map(|s| parse_slug(&s)).transpose();
    let of = of.map_err(|e| ApiError::invalid("organization", &e.to_string()))?;
    let app = admin.app.clone();
    let wanted = Page::new(asked.limit, asked.cursor).check(&app.derived()?.cursors, nobody(), "audit")?;
    // Numbers, in the clothes of an id.
    let before = wanted.after.and_then(|id| i64::try_from(id.as_u128()).ok());
    let rows = wanted.rows();
    let found = ask(&admin, async move |control| {
        let of = match of {
            Some(slug) => Some(control.tenant(&slug).await?.id),
            None => None,
        };
        control.history(of, before, rows).await
    });
    Ok(Json(wanted.page(found.await?, |d| Uuid::from_u128(u128::try_from(d.id).unwrap_or(0)))))
}

/// 200 with every administrator.
pub(super) async fn administrators(admin: Administrator) -> Result<Json<List<Admin>>, ApiError> {
    Ok(Json(List::all(ask(&admin, async |control| control.admins().await).await?)))
}

/// Request of [`add_administrator`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorCreate)]
pub(super) struct AddAdministrator {
    #[schema(max_length = 254)]
    email: String,
    role: Role,
}

/// Response of [`add_administrator`] and [`reset_administrator`].
#[derive(Serialize, ToSchema)]
#[schema(as = AdministratorWithPassword)]
pub(super) struct WithPassword {
    #[serde(flatten)]
    administrator: Admin,
    /// Shown once.
    password: String,
}

/// 201 with a password, shown once.
pub(super) async fn add_administrator(
    admin: Administrator,
    body: Body<AddAdministrator>,
) -> Result<(StatusCode, Json<WithPassword>), ApiError> {
    let AddAdministrator { email, role } = body.value;
    let email =
        crate::control::parse_email(&email).map_err(|e| ApiError::invalid("email", &e.to_string()))?;
    let about = json!({ "email": email, "role": role });
    let create = async move |control: &mut Control| control.create_admin(&email, role, None).await;
    let (administrator, password) = act(&admin, about, create).await?;
    let password = password.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(WithPassword { administrator, password })))
}

/// Request of [`change_administrator`]. What is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdministratorUpdate)]
pub(super) struct ChangeAdministrator {
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    disabled: Option<bool>,
}

/// 200 with the administrator. 409 `refused` when nobody would be left who may say who else may.
pub(super) async fn change_administrator(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
    body: Body<ChangeAdministrator>,
) -> Result<Json<Admin>, ApiError> {
    let id = id(path)?;
    let change = AdminChange { role: body.value.role, disabled: body.value.disabled };
    let about = json!({ "administrator": id, "role": change.role, "disabled": change.disabled });
    let changed = act(&admin, about, async move |control| {
        let email = control.admin_of(id).await?.email;
        control.change_admin(&email, change).await
    });
    changed.await.map(Json).map_err(gone)
}

/// 200 with another password, shown once; the second factor is taken away, and all sessions end.
pub(super) async fn reset_administrator(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<WithPassword>, ApiError> {
    let id = id(path)?;
    if id == admin.admin.id {
        // Whoever has found an open browser has no password, and no code.
        return Err(ApiError::Refused(
            "one's own password is changed with the one before: auth/password".into(),
        ));
    }
    let reset = act(&admin, json!({ "administrator": id }), async move |control| {
        let email = control.admin_of(id).await?.email;
        control.reset_admin(&email, None).await
    });
    let (administrator, password) = reset.await.map_err(gone)?;
    Ok(Json(WithPassword { administrator, password: password.expose_secret().to_owned() }))
}

/// 200 with what was done to an organisation.
pub(super) async fn history(
    admin: Administrator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<List<Done>>, ApiError> {
    let slug = slug(path)?;
    let found = ask(&admin, async move |control| {
        let id = control.tenant(&slug).await?.id;
        control.history(Some(id), None, 200).await
    });
    Ok(Json(List::all(found.await?)))
}
