//! `gmah dev`: everything in one process, for trying and developing.
//!
//! A private PostgreSQL cluster, a certificate authority of its own, three demo organisations, both roles, and a file
//! that says where everything is. Started again it keeps the data; a killed run is cleaned up by the next.

mod certificates;
mod cluster;
mod files;
mod organisations;
mod probe;
mod summary;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use gmah_api::config::ApiConfig;
use gmah_api::control::config::ControlConfig;
use gmah_api::control::fleet::Fleet;
use gmah_api::control::servers::NewServer;
use gmah_api::control::{Control, ControlError, master};
use gmah_api::modules;
use gmah_router::config::RouterConfig;
use gmah_shared::config::ConfigFile;
use gmah_shared::hostname::Hostname;
use gmah_shared::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use crate::cli;
use cluster::Cluster;
use files::{DataDir, Ports};

/// Arguments of `gmah dev`.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Where everything is kept.
    #[arg(long, default_value = ".gmah", value_name = "DIR")]
    data_dir: PathBuf,
    /// Port of HTTPS; 0 picks a free one.
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// Port of plain HTTP; 0 picks a free one.
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Port of the router's admin listener; 0 picks a free one.
    #[arg(long, default_value_t = 9901)]
    admin_port: u16,
    /// Organisations are reached at SLUG.BASE_DOMAIN.
    #[arg(long, default_value = "gmah.localhost")]
    base_domain: String,
    /// Written when everything answers: addresses and credentials as JSON, readable by you only.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Throws the data away first.
    #[arg(long)]
    reset: bool,
    /// Sections like `acme`, `dns` or `pool` for the configuration that is written; what both say, this one decides.
    #[arg(long, value_name = "FILE")]
    extra_config: Option<PathBuf>,
    /// Folder with PostgreSQL's programs. Default: the newest found on this machine.
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

/// Runs until Ctrl-C.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let base = Hostname::parse(&args.base_domain)
        .map_err(|e| ControlError::Usage(format!("--base-domain {:?}: {e}", args.base_domain)))?;
    let ports = Ports::pick(args.https_port, args.http_port, args.admin_port)?;
    let dir = DataDir::open(&args.data_dir)?;
    if let Some(ready) = &args.ready_file {
        files::remove(ready)?;
    }
    let binaries = cluster::find(args.pg_bin.as_deref())?;
    // From here on a signal ends things in order, also in the middle of the start.
    let tasks = Tasks::new();
    let told = tasks.token().clone();
    {
        let told = told.clone();
        let mut signals = cli::Signals::new()?;
        tasks.spawn("signals", async move {
            signals.received().await;
            told.cancel();
        });
    }
    if args.reset {
        cluster::stop_leftover(&binaries, &dir).await?;
        dir.reset()?;
    }
    let mut cluster = tokio::select! {
        started = Cluster::start(&binaries, &dir) => started?,
        // What had been started is killed as it is dropped; PostgreSQL recovers from that.
        () = told.cancelled() => return Ok(()),
    };
    let served = serve(&args, &dir, &base, ports, &mut cluster, &told).await;
    println!("stopping PostgreSQL");
    let stopped = cluster.stop().await;
    served.and(stopped)
}

async fn serve(
    args: &DevArgs,
    dir: &DataDir,
    base: &Hostname,
    ports: Ports,
    cluster: &mut Cluster,
    told: &CancellationToken,
) -> anyhow::Result<()> {
    certificates::ensure(dir, base)?;
    dir.ensure_master_key()?;
    dir.ensure_backup_key()?;
    let extra = match &args.extra_config {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => String::new(),
    };
    dir.write_config(base, ports, cluster, &extra).with_context(|| "writing the configuration")?;
    let file = ConfigFile::load(&dir.config())?;
    let settings = file.settings()?;
    cli::start_logging(&settings)?;

    let organisations = tokio::select! {
        prepared = prepare(&file, cluster, dir) => prepared?,
        // Every step of it may be killed and run again.
        () = told.cancelled() => return Ok(()),
    };
    // Both before either starts: what was started is also stopped.
    let (of_api, of_router) = (ApiConfig::from_file(&file)?, RouterConfig::from_file(&file)?);
    let api = gmah_api::server::start(&settings, of_api).await?;
    let router = match gmah_router::server::start(&settings, of_router).await {
        Ok(router) => router,
        Err(e) => {
            api.stop().await;
            return Err(e.into());
        }
    };
    let ready = async {
        let hosts: Vec<_> = organisations.tenants.iter().map(|t| t.host.clone()).collect();
        let is_ordered = settings.acme.as_ref().is_some_and(|a| a.wildcard.is_some());
        probe::until_served(router.https, &dir.ca(), is_ordered, &hosts, Duration::from_secs(30)).await?;
        let info = summary::Info {
            https: router.https,
            http: router.http,
            admin: router.admin,
            api: api.address,
            api_admin: api.admin,
            base: base.clone(),
            organisations: &organisations,
            dir,
            cluster,
        };
        if let Some(path) = &args.ready_file {
            files::write_private(path, info.json().to_string().as_bytes())?;
        }
        println!("{}", info.text());
        anyhow::Ok(())
    };
    let ready = tokio::select! {
        ready = ready => ready,
        () = told.cancelled() => Ok(()),
    };
    let result = match ready {
        // Losing the arm of the cluster loses nothing: it is stopped right after.
        Ok(()) => tokio::select! {
            () = told.cancelled() => Ok(()),
            died = cluster.died() => Err(died),
        },
        Err(e) => Err(e),
    };
    println!("stopping");
    router.stop().await;
    api.stop().await;
    if let Some(path) = &args.ready_file {
        files::remove(path)?;
    }
    result
}

/// Master database, keys, the server, demo organisations.
async fn prepare(file: &ConfigFile, cluster: &Cluster, dir: &DataDir) -> anyhow::Result<organisations::Demo> {
    let settings = file.settings()?;
    master::create_if_absent(&settings.master, "postgres").await?;
    let mut control = Control::open(settings, ControlConfig::from_file(file)?.without_probe()).await?;
    control.ensure_signing_key().await?;
    control.forget_nodes().await?;
    control
        .add_server(NewServer {
            name: "local".into(),
            host: cluster.host().into(),
            port: cluster.port(),
            tls: None,
            tls_ca: None,
            admin_user: cluster::SUPERUSER.into(),
            admin_password: Some(cluster.password().clone()),
            max_databases: 10_000,
            replica_of: None,
        })
        .await?;
    migrate(&mut control, dir).await?;
    organisations::ensure(&mut control, dir).await
}

/// Brings organisations of an earlier version up to this one, once. One that cannot be is said, and harms no other.
async fn migrate(control: &mut Control, dir: &DataDir) -> anyhow::Result<()> {
    let (marker, schema) = (dir.path("schema"), modules::fingerprint());
    if std::fs::read_to_string(&marker).is_ok_and(|known| known == schema) {
        return Ok(());
    }
    let fleet = Fleet { max_failures: usize::MAX, ..Fleet::default() };
    let tenants = control.migratable().await?;
    let report = control.migrate_fleet(tenants, fleet, |_| {}).await?;
    for outcome in report.tenants {
        if let Some(error) = outcome.error {
            tracing::error!(tenant.slug = outcome.slug, error, "not migrated");
        }
    }
    files::write_private(&marker, schema.as_bytes())
}

/// An address of this machine only.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
