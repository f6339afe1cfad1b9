-- The password that an organisation's role is about to have: while it is being exchanged, whoever connects tries both.
alter table organizations add column role_password_next bytea;          -- sealed for organizations/<id>/role
