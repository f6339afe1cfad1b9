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

/// Bytes of a tenant's database.
pub const TENANT_DATABASE_SIZE: &str = "gmah_tenant_database_size_bytes";
/// Connections to it, whoever has them.
pub const TENANT_CONNECTIONS: &str = "gmah_tenant_connections";
/// Users that may log in.
pub const TENANT_USERS: &str = "gmah_tenant_users";
/// Members, or patients.
pub const TENANT_MEMBERS: &str = "gmah_tenant_members";
/// Loans that are paid out and not back.
pub const TENANT_ACTIVE_LOANS: &str = "gmah_tenant_active_loans";
/// Payments of this month.
pub const TENANT_TRANSACTIONS: &str = "gmah_tenant_month_transactions";
/// Bytes of a tenant's files.
pub const TENANT_STORAGE: &str = "gmah_tenant_storage_bytes";
/// When somebody did something last.
pub const TENANT_LAST_ACTIVITY: &str = "gmah_tenant_last_activity_timestamp_seconds";
/// 0 healthy, 1 warning, 2 critical.
pub const TENANT_HEALTH: &str = "gmah_tenant_health";
/// 1 while a tenant is suspended or in maintenance, in whatever mode.
pub const TENANT_CLOSED: &str = "gmah_tenant_closed";
/// When the figures were collected.
pub const TENANT_COLLECTED: &str = "gmah_tenant_collected_timestamp_seconds";
/// When the newest backup was made.
pub const TENANT_LAST_BACKUP: &str = "gmah_tenant_last_backup_timestamp_seconds";
/// Whether its trial found it well.
pub const TENANT_BACKUP_VERIFIED: &str = "gmah_tenant_last_backup_verified";
/// Version of each set of migrations.
pub const TENANT_SCHEMA: &str = "gmah_tenant_schema_version";

/// Classes of status, as label values.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The class of a status as an index into [`CLASSES`].
pub fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(1, 5) - 1
}
