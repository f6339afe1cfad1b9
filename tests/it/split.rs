//! One shared database becomes one per organisation: everything, once, in the right one, or nothing.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::Dev;
use crate::harness::dev::text;
use crate::operations::killed_at;

const SHARED: &str = "
    create table hospitals (id int primary key, slug text, name text, contact text);
    insert into hospitals values (1, 'nord', 'Hôpital Nord', 'Nord@med.example'), (2, 'sud', 'Hôpital Sud', 'sud@med.example'),
        (3, 'est', 'Hôpital Est', 'est@med.example');
    create table patients (id uuid primary key, hospital_id int not null references hospitals, first_name varchar(80),
        last_name varchar(80), birth_date date, phone text, national_id text, address text, notes text,
        created_at timestamp not null default '2024-02-03 04:05:06.789', legacy_code int);
    insert into patients select md5('p' || n)::uuid, n % 3 + 1, 'First ' || n, 'Läst', date '1950-01-01' + n, null,
        'ID' || n, 'Street ' || n, case when n % 2 = 0 then 'note ' || n end from generate_series(1, 300) n;
    create table hospitalizations (id uuid primary key, patient_id uuid not null references patients, ward text, reason text,
        admitted_at timestamptz, discharged_at timestamptz);
    insert into hospitalizations select md5('h' || n)::uuid, md5('p' || n)::uuid, 'A', 'reason ' || n,
        timestamptz '2024-05-01 10:00+02', null from generate_series(1, 60) n;
    create table staff (id int primary key, hospital_id int not null, mail text, full_name text, chief bool);
    insert into staff select n, n % 3 + 1, 'S' || n || '@med.example', 'Staff ' || n, n < 4 from generate_series(1, 9) n;
    create table bills (id int primary key, patient uuid references patients, cents bigint);
    insert into bills select n, md5('p' || n)::uuid, n * 100 from generate_series(1, 30) n;
    create table jobs (id int, hospital_id int);";

const USERS: &str = "select md5('staff' || id)::uuid as id, lower(mail) as email, full_name as name,
    case when chief then 'administrator' else 'member' end as role from staff where hospital_id = $1::int";
const INVOICES: &str = "select md5('bill' || b.id)::uuid as id, b.patient as patient_id, b.cents as amount,
    'EUR' as currency from bills b join patients p on p.id = b.patient where p.hospital_id = $1::int";

/// What is there, and a plan that makes sense of it.
struct Medkey {
    dev: Dev,
    good: String,
}

impl Medkey {
    async fn start() -> Self {
        let dev = Dev::start().await;
        dev.execute("postgres", "create database medkey").await;
        dev.execute("medkey", SHARED).await;
        let pg = &dev.info["postgres"];
        let password = dev.folder().join("medkey.password");
        std::fs::write(&password, pg["password"].as_str().unwrap_or_default()).expect("written");
        let good = format!(
            r#"modules = ["patients"]
plan = "professional"
tenant_column = "hospital_id"
leave_out = ["jobs", "patients.legacy_code", "staff", "bills", "hospitals"]
[source]
host = {}
port = {}
user = {}
password_file = "medkey.password"
database = "medkey"
[organizations]
sql = "select id as key, slug, name, contact as admin_email from hospitals"
[tables.users]
sql = """{USERS}"""
[tables.invoices]
sql = """{INVOICES}"""
"#,
            pg["host"], pg["port"], pg["user"]
        );
        Self { dev, good }
    }

    fn plan(&self, text: &str) -> String {
        let path = self.dev.folder().join("medkey.toml");
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn work(&self, name: &str) -> (PathBuf, String) {
        let path = self.dev.folder().join(name);
        let text = path.to_str().expect("UTF-8").to_owned();
        (path, text)
    }

    async fn organisations(&self) -> String {
        self.dev.value("gmah_master", "select count(*) from organizations where purged_at is null").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_what_is_its_own() {
    let m = Medkey::start().await;
    let dev = &m.dev;
    let (work, path) = m.work("work");
    let plan = m.plan(&m.good);
    let dry = dev.cli_json(&["split", "--plan", &plan, "--dry-run"]).await;
    assert_eq!(
        dry["parts"][1]["rows"],
        json!({"hospitalizations": 20, "invoices": 10, "patients": 100, "users": 3}),
        "{dry}"
    );
    assert!(!work.exists() && dry["organizations"] == json!([]), "{dry}");
    assert_eq!(m.organisations().await, "3", "nothing is made");

    let done = dev.cli_json(&["split", "--plan", &plan, "--work", &path]).await;
    assert_eq!(
        (&done["failed"], done["organizations"].as_array().map(Vec::len)),
        (&json!(0), Some(3)),
        "{done}"
    );
    for (slug, key) in [("nord", 1), ("sud", 2), ("est", 3)] {
        let database = format!("gmah_org_{slug}");
        let there =
            format!("select string_agg(id::text, ',' order by id) from patients where hospital_id = {key}");
        let here = "select string_agg(id::text, ',' order by id) from patients";
        assert_eq!(dev.value(&database, here).await, dev.value("medkey", &there).await, "{slug}");
        let stays = "select count(*) from hospitalizations h join patients p on p.id = h.patient_id";
        assert_eq!(dev.value(&database, stays).await, "20", "{slug}");
        // Sealed, and not as it was.
        let clear = "select count(*) from patients where notes::text like '%note%' or length(national_id_index) <> 32";
        assert_eq!(dev.value(&database, clear).await, "0", "{slug}");
    }
    let nord =
        done["organizations"].as_array().expect("list").iter().find(|o| o["slug"] == "nord").expect("nord");
    assert_eq!(nord["admin_email"], "nord@med.example");
    let token = dev.login_as("nord", "nord@med.example", text(&nord["admin_password"])).await;
    let id = dev
        .value(
            "medkey",
            "select id from patients where hospital_id = 1 and notes is not null order by id limit 1",
        )
        .await;
    let patient = dev.get_as("nord", &format!("/api/v1/patients/{id}"), &token).await.json();
    let wanted = dev.value("medkey", &format!("select notes from patients where id = '{id}'")).await;
    assert_eq!(
        (text(&patient["notes"]), text(&patient["last_name"])),
        (wanted.as_str(), "Läst"),
        "{patient}"
    );
    assert_eq!(patient["created_at"], "2024-02-03T04:05:06.789Z", "a time without a zone is UTC");
    let other = dev.value("medkey", "select id from patients where hospital_id = 2 limit 1").await;
    assert_eq!(dev.get_as("nord", &format!("/api/v1/patients/{other}"), &token).await.status, 404);

    // Once more: nothing is made twice, nothing is lost that was written since.
    dev.execute("gmah_org_nord", "delete from hospitalizations").await;
    let again = dev.cli_json(&["split", "--plan", &plan, "--work", &path]).await;
    assert_eq!(
        (&again["failed"], &again["organizations"][0]["admin_password"]),
        (&json!(0), &Value::Null),
        "{again}"
    );
    assert_eq!(dev.value("gmah_org_nord", "select count(*) from hospitalizations").await, "0");
    let other = m.plan(&format!("# another\n{}", m.good));
    let out = dev.cli(&["split", "--plan", &other, "--work", &path]).await;
    assert!(String::from_utf8_lossy(&out.stderr).contains("another plan"), "{out:?}");
    use std::os::unix::fs::PermissionsExt as _;
    for inside in [work.clone(), work.join("nord/tables/patients.jsonl"), work.join("split.json")] {
        let mode = std::fs::metadata(&inside).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", inside.display());
    }
    let doctor = dev.cli(&["doctor"]).await;
    assert!(doctor.status.success(), "{doctor:?}");
}

/// What would be lost, or make no sense, is named, and nothing is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_leaves_something_open_makes_nothing() {
    let m = Medkey::start().await;
    let (work, path) = m.work("work");
    let change = |from: &str, to: &str| {
        assert!(m.good.contains(from), "{from}");
        m.good.replacen(from, to, 1)
    };
    let users = format!("[tables.users]\nsql = \"\"\"{USERS}\"\"\"\n");
    for (text, code, what) in [
        (change("\"jobs\", ", ""), 1, "jobs: would stay behind"),
        (change("\"patients.legacy_code\", ", ""), 1, "patients.legacy_code: is not there"),
        (change("b.patient as patient_id, ", ""), 1, "invoices.patient_id: every row needs it"),
        (change("where p.hospital_id = $1::int", ""), 1, "does not ask for $1"),
        (change("b.cents as amount", "'much' as amount"), 1, "invoices: "),
        (
            change("b.cents as amount", "b.cents / 3.0 as amount"),
            1,
            "invoices.amount: numeric there, bigint here",
        ),
        (change("\"bills\", ", ""), 1, "bills: would stay behind"),
        (change("from bills b", "from nowhere b"), 1, "nowhere"),
        (change("tenant_column = \"hospital_id\"\n", ""), 1, "patients: nothing says whose its rows are"),
        (change("[tables.invoices]", "[tables.sessions]"), 1, "the platform's"),
        (change("[tables.invoices]", "[tables.files]"), 1, "the platform's"),
        (change("[tables.invoices]", "[tables.members]"), 1, "no such table"),
        (change("[\"patients\"]", "[\"nonsense\"]"), 2, "nonsense"),
        (change("slug, name, contact", "'Nord' as slug, name, contact"), 1, "slug"),
        (change("slug, name, contact", "'paris' as slug, name, contact"), 1, "taken"),
        (change("slug, name, contact", "'twice' as slug, name, contact"), 1, "twice"),
        (change("contact as admin_email", "'nobody' as admin_email"), 1, "e-mail"),
        (change("contact as admin_email", "null as admin_email"), 1, "no key, slug, name or admin_email"),
        (change("from hospitals", "from hospitals where false"), 1, "finds nobody"),
        (
            change("from hospitals", "from hospitals where id < 3"),
            1,
            "patients: 300 rows, of which the organisations have 200",
        ),
        (change("database = \"medkey\"", "database = \"nowhere\""), 1, "nowhere"),
        (change("database = \"medkey\"", "databse = \"medkey\""), 2, "source.databse"),
        (change("plan = \"professional\"", "plan = \"none\""), 2, "no plan none"),
        (change(&users, ""), 0, ""),
    ] {
        let plan = m.plan(&text);
        let out = m.dev.cli(&["split", "--plan", &plan, "--work", &path, "--dry-run"]).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), said.contains(what)), (Some(code), true), "{what}: {said}");
        assert!(!work.exists(), "{what}");
    }
    assert_eq!(m.organisations().await, "3");
    assert_eq!(
        m.dev.value("postgres", "select count(*) from pg_database where datname like 'gmah_doctor_%'").await,
        "0"
    );
    let none = m.dev.cli(&["split", "--plan", "/nowhere.toml", "--dry-run"]).await;
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    // Who wrote something down is not whose it is.
    let second = "alter table hospitalizations add column brought_by uuid references patients";
    m.dev.execute("medkey", second).await;
    let plan = m.plan(&m.good);
    let out = m.dev.cli(&["split", "--plan", &plan, "--dry-run"]).await;
    assert!(String::from_utf8_lossy(&out.stderr).contains("or several references do"), "{out:?}");
    m.dev.execute("medkey", "alter table hospitalizations drop column brought_by").await;
    // Nor is it over a table that has no such column itself.
    let over = "create table invoices (id int, stay uuid references hospitalizations, other uuid references hospitalizations)";
    m.dev.execute("medkey", over).await;
    let (head, _) = m.good.split_once("[tables.invoices]").expect("the section");
    let out = m.dev.cli(&["split", "--plan", &m.plan(head), "--dry-run"]).await;
    assert!(String::from_utf8_lossy(&out.stderr).contains("invoices: nothing says whose"), "{out:?}");
    m.dev.execute("medkey", "drop table invoices").await;
    // A folder with something else in it is not cleared away.
    std::fs::create_dir_all(work.join("photos")).expect("made");
    let plan = m.plan(&m.good);
    let out = m.dev.cli(&["split", "--plan", &plan, "--work", &path]).await;
    assert!(out.status.code() == Some(1) && work.join("photos").exists(), "{out:?}");
}

/// Killed while one is made, it goes on with the moment that it had read; one that cannot be made harms nobody.
#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_was() {
    let m = Medkey::start().await;
    let dev = &m.dev;
    let (_, path) = m.work("work");
    // Two stays at once, of somebody in Est: nobody is in two beds.
    dev.execute(
        "medkey",
        "insert into hospitalizations select md5('two')::uuid, id, 'B', null, now(), null from patients
        where hospital_id = 3 and id in (select patient_id from hospitalizations) limit 1",
    )
    .await;
    let plan = m.plan(&m.good);
    let args = ["split", "--plan", &plan, "--work", &path, "--parallel", "1"];
    assert!(killed_at(dev, "tenant.import/load/after", &args).await);
    dev.execute("medkey", "delete from bills").await;
    let out = dev.cli(&[&args[..], &["--json"]].concat()).await;
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), &report["failed"]), (Some(3), &json!(1)), "{report}");
    let est = &report["organizations"][0];
    assert!(est["slug"] == "est" && text(&est["error"]).contains("hospitalizations"), "{est}");
    assert_eq!(
        dev.value("postgres", "select count(*) from pg_database where datname = 'gmah_org_est'").await,
        "0"
    );
    for slug in ["nord", "sud"] {
        let bills = dev.value(&format!("gmah_org_{slug}"), "select count(*) from invoices").await;
        assert_eq!(bills, "10", "{slug}: as of the moment that was read");
    }
    assert_eq!(m.organisations().await, "5", "none of est");
    assert_eq!(dev.cli_json(&["operation", "list", "--unfinished"]).await, json!([]));
}
