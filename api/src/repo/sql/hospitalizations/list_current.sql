-- Indexes: hospitalizations_current, hospitalizations_patient, hospitalizations_ward.
select id, patient_id, ward, reason, admitted_at, discharged_at, created_at, updated_at
from hospitalizations
where id > $1
  and ($3::uuid is null or patient_id = $3)
  and ($4::text is null or ward = $4)
  and discharged_at is null
order by id
limit $2
