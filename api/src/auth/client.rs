//! Who asks, as far as the router says: only routers reach this process with a valid token, and they replace what the
//! client said under these names.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;

use crate::error::ApiError;
use crate::language::Language;
use crate::repo::sessions::Origin;

/// The client of a request.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its address.
    pub address: Option<IpAddr>,
    /// What it says it is.
    user_agent: Option<String>,
    /// What it would rather read, if it says so.
    pub language: Option<Language>,
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::of(&parts.headers))
    }
}

impl Client {
    /// Of a request's headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        // The last one is the router's own word.
        let address = text("x-forwarded-for").and_then(|list| list.rsplit(',').next()?.trim().parse().ok());
        let printable = |c: &char| !c.is_control();
        let user_agent = text("user-agent").map(|agent| agent.chars().filter(printable).take(200).collect());
        let language = text("accept-language").map(Language::preferred);
        Self { address, user_agent, language }
    }

    /// As a session keeps it.
    pub fn origin(&self) -> Origin {
        Origin { address: self.address.map(|a| a.to_string()), user_agent: self.user_agent.clone() }
    }
}
