//! Sign-up: people who make an organisation by themselves. Off, and then 404, without `[signup]`.
//!
//! ```text
//! POST /signup ─► a letter ─► POST /signup/confirm ─► an operation, as any other ─► a letter with a link for a password
//! ```
//!
//! Nothing is made, and no slug is held, before somebody has shown that the address is theirs. Letters are bounded by
//! address, by network and over all, on all nodes together.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use gmah_shared::tenant::TenantSlug;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;
use utoipa::ToSchema;
use uuid::Uuid;

use super::session::{ASKED, nobody, rows};
use super::{GUARDS, work};
use crate::auth::client::Client;
use crate::auth::throttle::network;
use crate::auth::{Bearer, bearer_hash};
use crate::control::backup::hex;
use crate::control::config::Signup;
use crate::control::provision::check_name;
use crate::control::signup::{PROPOSED, proposals};
use crate::control::{ControlError, parse_email, parse_slug};
use crate::error::{ApiError, Conflict};
use crate::handlers::{Body, query};
use crate::json::Json;
use crate::mail::{self, NotSent};
use crate::routes::Parameter;
use crate::server::App;

/// After which another letter may be asked for.
const LATER: u32 = 3600;
const TOKEN: usize = 43;

fn enabled(app: &App) -> Result<&Signup, ApiError> {
    app.platform.signup().ok_or(ApiError::NotFound)
}

/// Parameters of [`slugs`].
pub(super) const QUERY: &[Parameter] = &[Parameter::required(
    "name",
    "Of the organisation.",
    r#"{"type": "string", "minLength": 1, "maxLength": 200}"#,
)];

/// Query of [`slugs`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    name: String,
}

/// Response of [`slugs`].
#[derive(Serialize, ToSchema)]
#[schema(as = SlugProposals)]
pub(super) struct Proposals {
    /// Free at this moment, the nicest first; none where the name makes none.
    slugs: Vec<String>,
}

/// 200 with slugs that a name makes and that nobody has; 422 for what is no name.
pub(super) async fn slugs(
    State(app): State<Arc<App>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Proposals>, ApiError> {
    enabled(&app)?;
    let asked = query(asked)?;
    check_name(&asked.name).map_err(invalid("name"))?;
    let wanted: Vec<String> = proposals(&asked.name).map(|s| s.to_string()).collect();
    let taken: Vec<String> = rows(&app, TAKEN, &[&wanted]).await?.iter().map(|r| r.get(0)).collect();
    let slugs = wanted.into_iter().filter(|s| !taken.contains(s)).take(PROPOSED).collect();
    Ok(Json(Proposals { slugs }))
}

/// Request of [`create`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SignUp)]
pub(super) struct Create {
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    #[schema(pattern = "^[a-z][a-z0-9-]{1,48}[a-z0-9]$")]
    slug: String,
    #[schema(max_length = 254)]
    email: String,
    /// One of those that are offered; the first without it.
    #[serde(default)]
    plan: Option<String>,
}

/// Response of [`create`].
#[derive(Serialize, ToSchema)]
#[schema(as = SignUpAccepted)]
pub(super) struct Accepted {
    /// Seconds within which the link in the letter is to be followed.
    expires_in: u64,
}

/// 202, and a letter; 409 `slug_taken`; 422 for a field; 429 when too many letters were sent; 503 when none can be sent.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    body: Body<Create>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let signup = enabled(&app)?;
    let Create { name, slug, email, plan } = body.value;
    check_name(&name).map_err(invalid("name"))?;
    if !is_plain(&name) {
        return Err(ApiError::invalid(
            "name",
            "has at most 80 characters, and nothing that reads as an address",
        ));
    }
    let slug = parse_slug(&slug).map_err(invalid("slug"))?;
    let email = parse_email(&email).map_err(invalid("email"))?;
    let plan = match plan {
        Some(plan) if signup.plans.contains(&plan) => plan,
        Some(_) => return Err(ApiError::invalid("plan", &format!("one of {}", signup.plans.join(", ")))),
        None => signup.plans.first().cloned().ok_or(ApiError::NotFound)?,
    };
    is_free(&app, &slug).await?;
    let Some(_place) = app.letters.enter(nobody()) else { return Err(ApiError::Unavailable) };
    let (id, token) = (Uuid::now_v7(), Bearer::generate(nobody()));
    let language = client.language.unwrap_or_default();
    let from = client.address.map_or_else(String::new, |a| hex(&network(a)));
    let bounds = [&signup.per_email.get(), &signup.per_network.get(), &signup.per_hour.get()]
        .map(|n| i64::try_from(*n).unwrap_or(i64::MAX));
    let life = signup.life.as_secs_f64();
    let asked: [&(dyn ToSql + Sync); 12] = [
        &id,
        &token.hash,
        &email,
        &name,
        &slug.as_str(),
        &plan,
        &language.tag(),
        &from,
        &life,
        &bounds[0],
        &bounds[1],
        &bounds[2],
    ];
    if !put(&app, &asked).await? {
        return Err(ApiError::TooManyAttempts { seconds: LATER });
    }
    let link = app.platform.signup_link(signup).replace("{token}", &token.text);
    let letter = mail::confirmation(language, &email, &name, &link);
    if let Err(why) = app.mailer.now(id, &letter).await {
        tracing::warn!(signup = %id, error = %why, "the letter to confirm a sign-up was not sent");
        // One that the relay was silent about may be on its way: it counts, and its link works.
        if !matches!(why, NotSent::Silent) {
            rows(&app, "delete from signups where id = $1", &[&id]).await?;
        }
        return Err(ApiError::Unavailable);
    }
    Ok((StatusCode::ACCEPTED, Json(Accepted { expires_in: signup.life.as_secs() })))
}

/// Request of [`confirm`].
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SignUpConfirm)]
pub(super) struct Confirm {
    /// Of the letter.
    #[schema(value_type = String, min_length = 43, max_length = 43)]
    token: SecretString,
    /// Another than was asked for, where that was taken meanwhile.
    #[serde(default)]
    #[schema(pattern = "^[a-z][a-z0-9-]{1,48}[a-z0-9]$")]
    slug: Option<String>,
}

/// Response of [`confirm`].
#[derive(Serialize, ToSchema)]
#[schema(as = SignUpStanding)]
pub(super) struct Standing {
    /// `making`, or `ready`.
    state: &'static str,
    /// Of the organisation.
    slug: String,
    /// Where it is, or will be.
    url: String,
}

/// 202 while it is being made, 200 when it is ready: asked again, it says how it stands. 409 `slug_taken`: the same with
/// another one. 409 `refused` when it could not be made; asked after that, it begins again. 422 `link_invalid`.
pub(super) async fn confirm(
    State(app): State<Arc<App>>,
    body: Body<Confirm>,
) -> Result<(StatusCode, Json<Standing>), ApiError> {
    enabled(&app)?;
    let Confirm { token, slug } = body.value;
    let other = slug.map(|s| parse_slug(&s).map_err(invalid("slug"))).transpose()?;
    let token = token.expose_secret();
    if token.len() != TOKEN {
        return Err(ApiError::LinkInvalid);
    }
    let hash = bearer_hash(nobody(), token);
    let found = rows(&app, FIND, &[&hash]).await?.into_iter().next().ok_or(ApiError::LinkInvalid)?;
    let (id, is_ready, is_making): (Uuid, bool, bool) =
        (found.get("id"), found.get("is_ready"), found.get("is_making"));
    let own = parse_slug(found.get("slug")).map_err(|_| ApiError::Internal)?;
    let answer = |status, state, slug: &TenantSlug| {
        let url = format!("https://{}/", app.names.authority(slug, &app.names.host_of(slug)));
        Ok((status, Json(Standing { state, slug: slug.to_string(), url })))
    };
    if is_ready {
        return answer(StatusCode::OK, "ready", &own);
    }
    if is_making {
        return answer(StatusCode::ACCEPTED, "making", &own);
    }
    if let Some(why) = found.get::<_, Option<String>>("failure") {
        rows(&app, "update signups set failure = null where id = $1", &[&id]).await?;
        return Err(ApiError::Refused(why));
    }
    let slug = match (found.get("is_begun"), other) {
        // Half made under that name it is gone on with, under no other.
        (true, _) => own,
        (false, other) => {
            let slug = other.unwrap_or(own);
            is_free(&app, &slug).await?;
            slug
        }
    };
    let email: String = found.get("email");
    let place = work::place(&app)?;
    if rows(&app, CLAIM, &[&id, &slug.as_str()]).await?.is_empty() {
        return answer(StatusCode::ACCEPTED, "making", &slug);
    }
    work::alone(&app, format!("signup:{email}"), place, async move |control| control.make_signup(id).await);
    answer(StatusCode::ACCEPTED, "making", &slug)
}

/// Counts and puts, one at a time on all nodes: whoever counts sees what was put before. False when there were too many.
async fn put(app: &App, asked: &[&(dyn ToSql + Sync)]) -> Result<bool, ApiError> {
    let putting = async {
        let mut client = app.master.get().await.map_err(|e| e.to_string())?;
        let tx = client.transaction().await.map_err(|e| e.to_string())?;
        tx.query(TURN, &[]).await.map_err(|e| e.to_string())?;
        let made = tx.query(PUT, asked).await.map_err(|e| e.to_string())?;
        tx.commit().await.map_err(|e| e.to_string())?;
        Ok(!made.is_empty())
    };
    let put: Result<Result<bool, String>, _> = tokio::time::timeout(ASKED, putting).await;
    put.unwrap_or_else(|_| Err("no answer in time".into())).map_err(|why| {
        tracing::warn!(error = why, "a sign-up was not put down");
        ApiError::Unavailable
    })
}

/// A name goes into a letter to whoever is named: it must not be a message, nor lead anywhere.
fn is_plain(name: &str) -> bool {
    let leads = |pair: &[char]| pair[0] == '.' && pair[1].is_alphanumeric();
    let chars: Vec<char> = name.chars().collect();
    chars.len() <= 80 && !name.contains([':', '/', '\\', '@']) && !chars.windows(2).any(leads)
}

async fn is_free(app: &App, slug: &TenantSlug) -> Result<(), ApiError> {
    match rows(app, TAKEN, &[&vec![slug.to_string()]]).await?.is_empty() {
        true => Ok(()),
        false => Err(ApiError::Conflict(Conflict::SlugTaken)),
    }
}

fn invalid(field: &'static str) -> impl Fn(ControlError) -> ApiError {
    move |e| ApiError::invalid(field, &e.to_string())
}

/// A page for both ends of it, for whoever has none of their own.
pub(super) async fn page(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    enabled(&app)?;
    Ok(file(include_str!("signup/page.html"), "text/html; charset=utf-8"))
}

/// What moves on it.
pub(super) async fn script(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    enabled(&app)?;
    Ok(file(include_str!("signup/page.js"), "text/javascript; charset=utf-8"))
}

fn file(text: &'static str, kind: &'static str) -> Response {
    let mut response = text.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in GUARDS {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Index: organizations_slug.
const TAKEN: &str = "select slug from organizations where slug = any($1) and purged_at is null";
/// In a statement of its own: what counts must begin when it has the lock.
const TURN: &str = "select pg_advisory_xact_lock(7453010373645639536)";
const PUT: &str = "with recent as (
        select count(*) filter (where email = $3) as email, count(*) filter (where network = $8) as network,
            count(*) as everybody
        from signups where created_at > now() - interval '1 hour')
    insert into signups (id, token_hash, email, name, slug, plan, language, network, expires_at)
    select $1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9) from recent
    where email < $10 and network < $11 and everybody < $12
    returning id";
/// What is made longer than this ago and is not there was begun by a node that ended before it wrote anything down.
const FIND: &str = "select s.id, s.email, s.slug, s.failure, s.confirmed_at > now() - interval '10 minutes' is true as is_making,
        o.status is not null and o.status not in ('provisioning', 'deleted') as is_ready,
        o.status is not null and o.status = 'provisioning' as is_begun
    from signups s
    left join operations p on p.actor = 'signup:' || s.email and p.kind = 'tenant.create' and p.created_at >= s.created_at
        and p.input ->> 'slug' = s.slug
    left join organizations o on o.id = p.organization_id
    where s.token_hash = $1 and (s.expires_at > now() or s.confirmed_at is not null)
    order by p.created_at desc nulls last limit 1";
const CLAIM: &str = "update signups set confirmed_at = now(), slug = $2, failure = null
    where id = $1 and (confirmed_at is null or confirmed_at < now() - interval '10 minutes') returning id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere() {
        for name in ["Hôpital St. Louis", "A & B (18e)", "Dr. Ötker & Co.", "בית חולים"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(81);
        for name in
            ["Verify at https://evil.example", "evil.example", "see a/b", "me@evil.example", "x: y", &long]
        {
            assert!(!is_plain(name), "{name}");
        }
    }
}
