//! Demo data: a few hundred believable people, the same for the same organisation.

use gmah_shared::tenant::TenantSlug;
use uuid::Uuid;

use super::{Control, ControlError, During as _};
use crate::modules::{LOANS, PATIENTS};

/// How many people a module gets.
const PEOPLE: u64 = 240;

/// What was added.
#[derive(Debug, Default, serde::Serialize)]
pub struct Seeded {
    /// Members.
    pub members: u64,
    /// Patients.
    pub patients: u64,
}

impl Control {
    /// Fills the empty tables of an organisation's modules; tables that have rows are left alone.
    ///
    /// # Errors
    /// [`ControlError`] when its database is away.
    pub async fn seed(&self, slug: &TenantSlug) -> Result<Seeded, ControlError> {
        let tenant = self.tenant(slug).await?;
        let db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let people: Vec<Person> = (0..PEOPLE).map(|n| Person::new(slug.as_str(), n)).collect();
        let ids: Vec<Uuid> = people.iter().map(|_| Uuid::now_v7()).collect();
        let first: Vec<&str> = people.iter().map(|p| p.first).collect();
        let last: Vec<&str> = people.iter().map(|p| p.last).collect();
        let phone: Vec<&str> = people.iter().map(|p| p.phone.as_str()).collect();
        let mut seeded = Seeded::default();
        if tenant.modules.iter().any(|m| m == LOANS) {
            let email: Vec<&str> = people.iter().map(|p| p.email.as_str()).collect();
            seeded.members = db
                .execute(
                    "insert into members (id, first_name, last_name, phone, email)
                     select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
                     where not exists (select 1 from members)",
                    &[&ids, &first, &last, &phone, &email],
                )
                .await
                .during("seeding members")?;
        }
        if tenant.modules.iter().any(|m| m == PATIENTS) {
            let born: Vec<time::Date> = people.iter().map(|p| p.born).collect();
            seeded.patients = db
                .execute(
                    "insert into patients (id, first_name, last_name, phone, birth_date)
                     select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::date[])
                     where not exists (select 1 from patients)",
                    &[&ids, &first, &last, &phone, &born],
                )
                .await
                .during("seeding patients")?;
        }
        Ok(seeded)
    }
}

struct Person {
    first: &'static str,
    last: &'static str,
    email: String,
    phone: String,
    born: time::Date,
}

impl Person {
    /// The `n`th person of an organisation: picked by a hash, so that two organisations differ and a second run of
    /// the same does not.
    fn new(slug: &str, n: u64) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{slug}/{n}").as_bytes());
        let byte = |at: usize| usize::from(digest.as_ref()[at]);
        let first = FIRST[byte(0) % FIRST.len()];
        let last = LAST[byte(1) % LAST.len()];
        let digits: String = (2..10).map(|at| char::from(b'0' + (byte(at) % 10) as u8)).collect();
        let year = 1935 + i32::from(digest.as_ref()[11] % 80);
        let day = 1 + u16::from(digest.as_ref()[12]);
        let born = time::Date::from_ordinal_date(year, day).unwrap_or(time::Date::MIN);
        Self {
            first,
            last,
            email: format!("{}.{}{n}@example.org", first.to_lowercase(), last.to_lowercase()),
            phone: format!("+33 6{digits}"),
            born,
        }
    }
}

const FIRST: [&str; 40] = [
    "Aaron", "Abigail", "Alain", "Anna", "Benjamin", "Camille", "Clara", "Daniel", "David", "Deborah",
    "Elie", "Emma", "Esther", "Ethan", "Eva", "Gabriel", "Hanna", "Isaac", "Jacob", "Jeanne", "Jonas",
    "Joseph", "Judith", "Julie", "Laura", "Lea", "Louis", "Lucas", "Marc", "Marie", "Michel", "Miriam",
    "Nathan", "Noa", "Paul", "Rachel", "Ruth", "Samuel", "Sarah", "Simon",
];

const LAST: [&str; 40] = [
    "Abitbol",
    "Amar",
    "Attal",
    "Azoulay",
    "Barre",
    "Benayoun",
    "Bernard",
    "Bloch",
    "Chevalier",
    "Cohen",
    "Dahan",
    "Durand",
    "Elbaz",
    "Faure",
    "Fischer",
    "Garnier",
    "Girard",
    "Haddad",
    "Klein",
    "Lambert",
    "Laurent",
    "Levy",
    "Lopez",
    "Marchand",
    "Mercier",
    "Meyer",
    "Moreau",
    "Nahmias",
    "Perez",
    "Petit",
    "Picard",
    "Robert",
    "Roche",
    "Rousseau",
    "Schmitt",
    "Simon",
    "Taieb",
    "Vidal",
    "Weil",
    "Zerbib",
];
