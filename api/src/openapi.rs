//! `GET /api/openapi.json`: the api as OpenAPI 3.1, of the modules that the organisation has.
//!
//! Paths come from [`crate::routes::TABLE`], schemas from the types that handlers take and answer. What a module that is
//! off would answer is not in it: the document says what an organisation can ask.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};

use crate::context::TenantContext;
use crate::modules;
use crate::routes::{Access, Answers, Described, Parameter, Route, Schemas, TABLE};

/// 200, without a login: what there is, is no secret.
pub async fn show(ctx: TenantContext) -> Response {
    let body = cached(&ctx.detail().modules);
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The document with everything that there is. `authority` is that below which every organisation has its name.
pub fn whole(authority: &str) -> Value {
    let mut whole = document(|_| true);
    whole["info"]["description"] = json!(
        "One organisation, one database: what is described here is at each organisation's own host, with the modules that \
         it has. Times are RFC 3339 in UTC, money is integer minor units and an ISO 4217 code."
    );
    whole["servers"] = json!([{
        "url": format!("https://{{organisation}}.{authority}"),
        "description": "An organisation",
        "variables": {"organisation": {"default": "paris", "description": "Its slug."}},
    }]);
    whole
}

/// The document's bytes; one for each set of modules that anybody has, of those that this program knows.
fn cached(enabled: &[String]) -> Bytes {
    static DOCUMENTS: Mutex<BTreeMap<Vec<&'static str>, Bytes>> = Mutex::new(BTreeMap::new());
    let known = modules::OPTIONAL.iter().map(|m| m.key);
    let keys: Vec<_> = known.filter(|k| enabled.iter().any(|e| e == k)).collect();
    let mut documents = DOCUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    documents
        .entry(keys)
        .or_insert_with_key(|keys| document(|m| keys.contains(&m)).to_string().into())
        .clone()
}

/// The document of the modules for which `has` says so.
pub fn document(has: impl Fn(&str) -> bool) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for route in TABLE.iter().filter(|r| r.module.is_none_or(&has)) {
        let operation = operation(route, &mut schemas);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    let mut components: Map<String, Value> =
        schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    components.insert("Problem".into(), problem());
    let tags = std::iter::once(&modules::CORE).chain(modules::OPTIONAL.iter().filter(|m| has(m.key)));
    let tags: Vec<_> = tags.map(|m| json!({"name": m.key, "description": m.title})).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gmah", "version": "1", "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
            "description": "One organisation, one database: this document is of the organisation that the host names, with \
                the modules that it has. Times are RFC 3339 in UTC, money is integer minor units and an ISO 4217 code.",
        },
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An access token, or a program's key."},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-gmah_access",
                    "description": "Of browsers; every change brings `X-CSRF-Token` too."},
            },
        },
    })
}

/// The document of the platform's own routes.
pub(crate) fn of_platform(table: &'static [Route]) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for route in table {
        let mut operation = operation(route, &mut schemas);
        operation["tags"] = json!(["platform"]);
        if let Some(role) = route.permission {
            operation["description"] = format!("Needs the role `{role}`, or one that may more.").into();
        }
        if route.access == Access::User {
            operation["security"] = json!([{"bearer": []}]);
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    let mut components: Map<String, Value> =
        schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    components.insert("Problem".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gmah: the platform", "version": "1",
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
            "description": "What administrators of the platform do, at its own host and at no other. What takes several \
                steps is an operation: 202 with its id, and `/api/v1/admin/operations/{id}` says how it stands.",
        },
        "tags": [{"name": "platform", "description": "Administration of the platform"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "Of an administrator's login."}},
        },
    })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let mut parameters: Vec<_> = path_parameters(route.path).collect();
    if matches!(route.answers, Answers::List(_)) {
        parameters.extend(LIST_PARAMETERS.iter().map(parameter));
    }
    parameters.extend(route.query.iter().map(parameter));
    if takes_condition(route) {
        parameters.push(json!({
            "name": "If-Match", "in": "header", "required": false,
            "description": "The `ETag` of what is to be changed: another is refused with 412.",
            "schema": {"type": "string", "pattern": "^(\\*|\"[A-Za-z0-9_-]{22}\")$"},
        }));
    }
    if takes_key(route) {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same request with the same key happens once, and is answered the same.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }));
    }
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "tags": [route.module.unwrap_or(modules::CORE.key)],
        "responses": responses(route, schemas),
    });
    if let Some(permission) = route.permission {
        operation["description"] = format!("Needs the permission `{permission}`.").into();
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(takes) = route.takes {
        let schema = json!(takes(schemas));
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    if let Some(media_type) = route.takes_file {
        operation["requestBody"] =
            json!({"required": true, "content": {media_type: {"schema": {"type": "string"}}}});
    }
    if route.access == Access::User {
        operation["security"] = json!([{"bearer": []}, {"cookie": []}]);
    }
    operation
}

/// Whether the route changes a thing that is shown with a tag.
fn takes_condition(route: &Route) -> bool {
    takes_key(route) && (route.path.contains("{id}") || route.path.contains("{key}") || route.method == "PUT")
}

/// Whether the route's work is done once for a key: everything that users change, but for what is theirs alone and what
/// a second time finds done.
fn takes_key(route: &Route) -> bool {
    let is_ones_own = route.path.starts_with("/api/v1/auth/") && !route.path.contains("/totp");
    // Of the platform's, what runs twice finds what it had done: operations, states, names.
    let is_platforms = route.path.starts_with("/api/v1/admin/");
    route.is_write() && route.access == Access::User && !is_ones_own && !is_platforms
}

/// `getMembersById`: the method and the path's words.
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/").trim_start_matches("v1/");
    let words = path.split(['/', '-', '.']).map(|word| match word.strip_prefix('{') {
        Some(name) => format!("By{}", capital(name.trim_end_matches('}'))),
        None => capital(word),
    });
    std::iter::once(route.method.to_lowercase()).chain(words).collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + chars.as_str())
}

fn path_parameters(path: &'static str) -> impl Iterator<Item = Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let schema = match name {
            "key" => json!({"type": "string", "minLength": 1, "maxLength": 63}),
            "slug" => json!({"type": "string", "pattern": "^[a-z][a-z0-9-]{1,48}[a-z0-9]$"}),
            "module" => json!({"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}),
            "hostname" => json!({"type": "string", "pattern": "^[a-z0-9-]+([.][a-z0-9-]+)+$"}),
            _ => json!({"type": "string", "format": "uuid"}),
        };
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    })
}

fn parameter(p: &Parameter) -> Value {
    let schema: Value = serde_json::from_str(p.schema).unwrap_or_default();
    json!({"name": p.name, "in": "query", "required": p.is_required, "description": p.about, "schema": schema})
}

const LIST_PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "limit",
        about: "Most items of the page.",
        schema: r#"{"type": "integer", "minimum": 1, "maximum": 200, "default": 50}"#,
        is_required: false,
    },
    Parameter {
        name: "cursor",
        about: "`next_cursor` of the page before.",
        schema: r#"{"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"}"#,
        is_required: false,
    },
];

fn responses(route: &Route, schemas: &mut Schemas) -> Value {
    let mut all = Map::new();
    let json_of = |schema: Value| json!({"application/json": {"schema": schema}});
    match route.answers {
        Answers::Nothing => all.insert("204".into(), json!({"description": "Done."})),
        Answers::Later => all.insert("202".into(), json!({"description": "It will be done."})),
        Answers::One(status, of) => all.insert(
            status.to_string(),
            json!({"description": match status { 201 => "Made.", 202 => "It goes on.", _ => "So it is." }, "content": json_of(json!(of(schemas)))}),
        ),
        Answers::All(of) => all.insert(
            "200".into(),
            json!({"description": "All there are.", "content": json_of(page(of, schemas))}),
        ),
        Answers::List(of) => all.insert(
            "200".into(),
            json!({"description": "A page, oldest first.", "content": json_of(page(of, schemas))}),
        ),
        Answers::Other(media_type) => {
            all.insert("200".into(), json!({"description": "So it is.", "content": {media_type: {}}}))
        }
    };
    if route.method == "GET"
        && matches!(route.answers, Answers::One(..))
        && !route.path.starts_with("/api/v1/admin/")
    {
        all.insert("304".into(), json!({"description": "It is still what `If-None-Match` says."}));
    }
    for (status, why) in REFUSALS.iter().filter(|(status, _)| refuses(route, *status)) {
        all.insert(
            status.to_string(),
            json!({"description": why, "content": {"application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"}}}}),
        );
    }
    all.into()
}

fn page(of: Described, schemas: &mut Schemas) -> Value {
    json!({
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": json!(of(schemas))},
            "next_cursor": {"type": ["string", "null"], "description": "Of the next page, if there is one."},
        },
    })
}

const REFUSALS: &[(u16, &str)] = &[
    (400, "The request cannot be read."),
    (401, "No valid login, or not the right one."),
    (403, "The organisation is suspended, or the user may not do this."),
    (404, "There is nothing here."),
    (409, "Something is in the way; `code` says what."),
    (412, "It was changed by somebody else meanwhile."),
    (413, "The body is too large."),
    (415, "The body is not of the media type that the route takes."),
    (422, "The request breaks a rule; `field` says where."),
    (429, "Too many requests, or too many attempts."),
    (503, "Not available right now; try again after `Retry-After` seconds."),
];

fn refuses(route: &Route, status: u16) -> bool {
    match status {
        409 => route.is_write(),
        412 => takes_condition(route),
        413 | 415 => route.takes.is_some() || route.takes_file.is_some(),
        422 => route.is_write() || matches!(route.answers, Answers::List(_)) || !route.query.is_empty(),
        _ => true,
    }
}

/// RFC 9457, with what all of ours have.
fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "code", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string", "description": "For programs."},
            "request_id": {"type": "string"},
            "detail": {"type": "string"},
            "field": {"type": "string", "description": "Path of the field that breaks a rule."},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is() {
        let both = document(|_| true);
        assert_eq!(both["openapi"], "3.1.0");
        assert!(both["paths"]["/api/v1/members"]["post"]["requestBody"].is_object());
        let hospital = document(|m| m == modules::PATIENTS);
        assert!(hospital["paths"].get("/api/v1/members").is_none());
        assert!(hospital["components"]["schemas"].get("Member").is_none());
        assert!(hospital["paths"]["/api/v1/patients"]["get"].is_object());
    }

    /// Every reference leads somewhere, and no two types or operations share a name.
    #[test]
    fn hangs_together() {
        let document = document(|_| true);
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
        let mut schemas = Schemas::new();
        let mut ids = Vec::new();
        for route in TABLE {
            operation(route, &mut schemas);
            ids.push(operation_id(route));
        }
        let mut by_name = BTreeMap::new();
        for (name, schema) in schemas {
            let schema = json!(schema);
            let earlier = by_name.entry(name.clone()).or_insert_with(|| schema.clone());
            assert_eq!(*earlier, schema, "two types are called {name}");
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "two operations have one name");
    }
}
