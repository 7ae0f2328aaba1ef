module meshca.test/constraints

go 1.23
