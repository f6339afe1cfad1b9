//! Names that more than one module speaks of. The contract fixes them: a change here is a change for every dashboard.

/// Label with the slug of a tenant that exists.
pub const TENANT: &str = "tenant";
/// Tenants beyond `metrics.max_tenants`.
pub const OTHER: &str = "_other";
/// Requests for hosts that belong to nobody.
pub const UNKNOWN: &str = "_unknown";

/// Requests at the edge by tenant and class of status (`2xx`).
pub const ROUTER_TENANT_REQUESTS: &str = "gmah_router_tenant_requests_total";
/// Seconds from request header to end of response, sum and count.
pub const ROUTER_TENANT_SECONDS: &str = "gmah_router_tenant_request_duration_seconds";
/// Body bytes by tenant and direction (`in`, `out`).
pub const ROUTER_TENANT_BYTES: &str = "gmah_router_tenant_bytes_total";
/// Requests at the api by tenant and class of status.
pub const API_TENANT_REQUESTS: &str = "gmah_api_tenant_requests_total";
/// Connections of a tenant's pool by state (`idle`, `leased`).
pub const API_POOL_CONNECTIONS: &str = "gmah_api_pool_connections";

/// Classes of status, as label values.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The class of a status as an index into [`CLASSES`].
pub fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(1, 5) - 1
}
