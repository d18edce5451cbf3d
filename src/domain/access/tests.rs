use super::*;

fn rule(label: &str, method: Method, path: &str) -> Rule {
    Rule { label: label.into(), methods: vec![method], path: path.into(), ..Rule::default() }
}

fn table(profiles: &[Profile], rules: &[Rule]) -> AccessTable {
    AccessTable::compile(profiles, rules).expect("compiles")
}

#[test]
fn every_route_of_the_table_matches_itself() {
    let known = known_operations();
    for operation in OPERATIONS.iter() {
        let found = find(known, &operation.method, &operation.template).expect("matches");
        assert_eq!(found.value.template, operation.template);
    }
}

#[test]
fn the_catalog_is_what_the_api_opens_to_publishable_keys_without_our_own_keys_description() {
    insta::assert_debug_snapshot!(table(&[Profile::Catalog], &[]).opened());
}

#[test]
fn no_profile_opens_a_route_that_returns_a_secret() {
    for profile in [Profile::Catalog, Profile::Read, Profile::All] {
        let table = table(&[profile], &[]);
        for operation in OPERATIONS.iter().filter(|operation| operation.returns_secret) {
            let decision = table.decide(&operation.method, &operation.template, "");
            assert!(decision.is_err(), "{profile:?} opens {} {}", operation.method, operation.template);
        }
    }
    assert!(table(&[Profile::Read], &[]).opened().iter().all(|route| route.starts_with("GET ")));
}

#[test]
fn a_refusal_names_the_rule_that_would_open_the_route() {
    let catalog = table(&[Profile::Catalog], &[]);
    let denied = catalog.decide(&Method::GET, "/provider-deployments/pde_1", "").expect_err("refused");
    assert!(
        denied.hint.is_some_and(|hint| hint.contains("\"GET /provider-deployments/{providerDeploymentId}\""))
    );
    let denied = catalog.decide(&Method::GET, "/sessions", "").expect_err("refused");
    assert!(denied.hint.is_some_and(|hint| hint.contains("returns_secret = true")));
    assert!(catalog.decide(&Method::GET, "/nowhere", "").is_err());
}

#[test]
fn a_rule_opens_its_method_and_path_and_nothing_beside() {
    let table = table(
        &[],
        &[
            rule("allow[0]", Method::GET, "/provider-deployments"),
            rule("allow[1]", Method::GET, "/provider-deployments/{id}"),
        ],
    );
    let list = table.decide(&Method::GET, "/provider-deployments", "").expect("opened");
    assert!(list.list);
    assert_eq!(list.rule, "allow[0]");
    let one = table
        .decide(&Method::HEAD, "/instances/ins_1/provider-deployments/pde_1", "")
        .expect("opened, HEAD and prefix too");
    assert!(!one.list);
    assert_eq!(one.template, "/provider-deployments/{id}");
    for (method, path) in [
        (Method::POST, "/provider-deployments"),
        (Method::GET, "/provider-deployments/"),
        (Method::GET, "/provider-deployments/a/b"),
        (Method::GET, "/dashboard/instances/i/provider-deployments"),
        (Method::GET, "/instances/i/dashboard/x"),
    ] {
        assert!(table.decide(&method, path, "").is_err(), "{method} {path}");
    }
}

#[test]
fn a_parameter_does_not_open_a_static_sibling_that_returns_a_secret() {
    let secret = OPERATIONS
        .iter()
        .find(|op| op.method == Method::GET && op.returns_secret && op.template.matches('/').count() == 1)
        .expect("there is one");
    let table = table(&[], &[rule("allow[0]", Method::GET, "/{anything}")]);
    assert!(table.decide(&Method::GET, &secret.template, "").is_err());
    assert!(table.decide(&Method::GET, "/providers", "").is_ok());
}

#[test]
fn a_parameter_does_not_reach_a_secret_that_no_table_names() {
    let wide = ["/{a}", "/{a}/{b}", "/{a}/{b}/{c}"];
    let rules = |returns_secret: bool| {
        let methods = vec![Method::GET, Method::POST];
        wide.map(|path| Rule { methods: methods.clone(), returns_secret, ..rule(path, Method::GET, path) })
    };
    let (shut, open) = (table(&[], &rules(false)), table(&[], &rules(true)));
    for (method, path) in [
        (Method::GET, "/event-destinations"),
        (Method::HEAD, "/event-destinations"),
        (Method::POST, "/api-keys/key_1/reveal"),
        (Method::GET, "/instances/ins_1/api-keys"),
        (Method::GET, "/organization/api-keys"),
        (Method::GET, "/outposts/out_1/credentials"),
    ] {
        let denied = shut.decide(&method, path, "").expect_err("refused");
        assert!(denied.hint.is_some_and(|hint| hint.contains("returns_secret = true")), "{method} {path}");
        assert!(open.decide(&method, path, "").is_ok_and(|route| route.returns_secret), "{method} {path}");
        // Written out, it is refused where it is read.
        let written = operation::strip_instance(path);
        let fault = AccessTable::compile(&[], &[rule("allow[0]", Method::GET, written)]).map(|_| ());
        assert!(fault.expect_err("refused")[0].1.contains("returns_secret = true"), "{written}");
    }
    assert!(shut.decide(&Method::GET, "/outposts/out_1", "").is_ok());
}

#[test]
fn a_static_rule_of_one_method_does_not_hide_a_parameter_of_another() {
    let table =
        table(&[], &[rule("a", Method::POST, "/things/special"), rule("b", Method::GET, "/things/{id}")]);
    assert!(table.decide(&Method::GET, "/things/special", "").is_ok());
    assert!(table.decide(&Method::POST, "/things/special", "").is_ok());
    assert!(table.decide(&Method::POST, "/things/other", "").is_err());
}

#[test]
fn rules_that_cannot_stand_are_named_with_the_cure() {
    let fault = |rules: &[Rule]| AccessTable::compile(&[], rules).map(|_| ()).expect_err("refused");
    for path in ["things", "/things/", "/a//b", "/a/{x}y", "/a/*", "/a/:id", "/a?x=1", "/a/..", "/a/{}"] {
        assert_eq!(fault(&[rule("allow[0]", Method::GET, path)]).len(), 1, "{path}");
    }
    for path in ["/dashboard/x", "/consumer/session", "/instances/{id}/providers"] {
        assert!(fault(&[rule("allow[0]", Method::GET, path)])[0].1.contains("never match"), "{path}");
    }
    let secret = fault(&[rule("allow[3]", Method::POST, "/sessions")]);
    assert_eq!(secret[0].0, "allow[3]");
    assert!(secret[0].1.contains("returns_secret = true"));
    let twice = fault(&[
        rule("allow[0]", Method::GET, "/things/{id}"),
        rule("allow[1]", Method::GET, "/things/{name}"),
    ]);
    assert_eq!(twice[0].0, "allow[1]");
}

fn asking(label: &str, constraints: &[(&str, &str)], strict: bool) -> Rule {
    let query = Query::parse(constraints.iter().copied(), strict).expect("constraints");
    Rule { query, ..rule(label, Method::GET, "/provider-deployments") }
}

#[test]
fn a_rule_with_constraints_opens_the_queries_that_keep_to_them_and_names_the_one_that_is_broken() {
    let table = table(&[Profile::Read], &[asking("rules[0]", &[("limit", "!<=50")], false)]);
    let ask = |query: &str| table.decide(&Method::GET, "/instances/i/provider-deployments", query);
    assert_eq!(ask("limit=50&order=asc").map(|route| route.rule.clone()), Ok("rules[0]".to_owned()));
    let denied = ask("limit=51").expect_err("refused, although the profile alone would allow it");
    assert_eq!(denied.message, "The parameter limit must be a whole number of at most 50.");
    assert_eq!((denied.rule.as_deref(), denied.ambiguous), (Some("rules[0]"), false));
    assert!(denied.hint.is_some_and(|hint| hint.contains("rules[0]")));
    assert_eq!(ask("").expect_err("refused").message, "The parameter limit must be there.");
    assert!(ask("limit=1&limit[]=2").expect_err("refused").ambiguous);
    // Another route is not concerned, and it counts as opened.
    assert!(table.decide(&Method::GET, "/provider-deployments/pde_1", "limit=51").is_ok());
    assert!(table.opened().contains(&"GET /provider-deployments".to_owned()));
}

#[test]
fn a_shadow_rule_says_what_it_would_refuse_and_opens_nothing() {
    let shadow = |rule: Rule| Rule { shadow: true, ..rule };
    let table = table(
        &[Profile::Catalog],
        &[
            asking("rules[0]", &[("limit", "<=50")], false),
            shadow(asking("rules[1]", &[("limit", "<=10")], true)),
            shadow(rule("rules[2]", Method::GET, "/agents")),
            Rule { returns_secret: true, ..rule("rules[3]", Method::GET, "/sessions") },
            shadow(rule("rules[4]", Method::GET, "/sessions")),
        ],
    );
    assert_eq!(table.shadow_rules().collect::<Vec<_>>(), ["rules[1]", "rules[2]", "rules[4]"]);
    let says = |path: &str, query: &str| {
        table.shadow(&Method::HEAD, path, query).map(|refusal| (refusal.rule, refusal.constraint))
    };
    let both = |rule: &str, constraint: &str| Some((rule.to_owned(), constraint.to_owned()));
    assert!(table.decide(&Method::GET, "/provider-deployments", "limit=50").is_ok());
    assert_eq!(says("/provider-deployments", "limit=50"), both("rules[1]", "limit"));
    assert_eq!(says("/provider-deployments", "limit=5&order=asc"), both("rules[1]", "query_strict"));
    assert_eq!(says("/instances/i/provider-deployments", "limit=5"), None);
    assert_eq!(says("/sessions", ""), both("rules[4]", "returns_secret"));
    assert_eq!(says("/agents", ""), None);
    assert!(table.decide(&Method::GET, "/agents", "").is_err(), "it opens nothing");
}

#[test]
fn two_rules_for_one_route_cannot_stand_but_a_shadow_may_stand_beside_one() {
    let fault = |rules: &[Rule]| AccessTable::compile(&[], rules).map(|_| ()).expect_err("refused");
    let shadow = |label: &str| Rule { shadow: true, ..asking(label, &[("limit", "<=10")], false) };
    let twice = fault(&[asking("a", &[], false), shadow("b"), shadow("c"), asking("d", &[], true)]);
    let labels: Vec<_> = twice.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, ["c", "d"]);
    assert!(twice[0].1.contains("already shadows") && twice[1].1.contains("already opens"), "{twice:?}");
}

#[test]
fn one_item_of_a_secret_route_is_a_secret_route() {
    let fault = AccessTable::compile(&[], &[rule("allow[0]", Method::GET, "/sessions/ses_1")]);
    let fault = fault.map(|_| ()).expect_err("refused");
    assert!(fault[0].1.contains("returns_secret = true"), "{fault:?}");
    let open = Rule { returns_secret: true, ..rule("rules[0]", Method::GET, "/sessions/ses_1") };
    let table = table(&[], &[open]);
    assert!(table.decide(&Method::GET, "/sessions/ses_1", "").is_ok_and(|route| route.returns_secret));
    assert!(table.decide(&Method::GET, "/sessions/ses_2", "").is_err());
}
