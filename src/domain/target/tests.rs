use proptest::prelude::*;

use super::*;

fn parse(target: &str) -> Result<(Target, Extracted), Ambiguous> {
    Target::parse(&PathAndQuery::try_from(target).expect("a target"), "")
}

fn forwarded(target: &str) -> String {
    parse(target).expect("reads one way").0.path_and_query().to_string()
}

#[test]
fn an_honest_target_is_forwarded_to_the_letter() {
    for target in [
        "/",
        "/provider-deployments",
        "/provider-deployments?limit=2&after=pde_1",
        "/provider-deployments?status%5B0%5D=a&status%5B1%5D=b",
        "/provider-deployments?status[0]=a&status[1]=b",
        "/x/a%20b?q=%2F%2e+x",
        "/x/%C3%A9?q=%ff",
        "/x?",
        "/x?a&b=&=c&&",
        "/x?created_at[gt]=1&a%5B0%5D%5Bb%5D=2",
        "/x/",
    ] {
        assert_eq!(forwarded(target), target);
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    for (target, why) in [
        ("/a//b", Ambiguous::EmptySegment),
        ("//", Ambiguous::EmptySegment),
        ("/a/./b", Ambiguous::DotSegment),
        ("/a/..", Ambiguous::DotSegment),
        ("/a%2Fb", Ambiguous::EncodedPathByte),
        ("/a%2fb", Ambiguous::EncodedPathByte),
        ("/a/%2e%2e/b", Ambiguous::EncodedPathByte),
        ("/a%00", Ambiguous::EncodedPathByte),
        ("/a%5Cb", Ambiguous::EncodedPathByte),
        ("/%73essions", Ambiguous::EncodedPathByte),
        ("/a%252e", Ambiguous::EncodedPathByte),
        ("/a%7f", Ambiguous::EncodedPathByte),
        ("/a%C0%AFb", Ambiguous::EncodedPathByte),
        ("/a%ff", Ambiguous::EncodedPathByte),
        ("/a%2", Ambiguous::BadEscape),
        ("/a%zz", Ambiguous::BadEscape),
        ("/a?x=%", Ambiguous::BadEscape),
        ("/a\\b", Ambiguous::BadByte),
        ("/a;b", Ambiguous::BadByte),
        ("/a?x=\\", Ambiguous::BadByte),
        ("/a?key=1&key=2", Ambiguous::Repeated("key")),
        ("/a?token=1&%74oken=2", Ambiguous::Repeated("token")),
        ("/a?key[]=1", Ambiguous::Repeated("key")),
        ("/a?key%5B0%5D=1", Ambiguous::Repeated("key")),
        ("/a?[key]=1", Ambiguous::BadName),
        ("/a?%5Btoken%5D=1", Ambiguous::BadName),
        ("/a?key]=1", Ambiguous::BadName),
        ("/a?limit[=1", Ambiguous::BadName),
        ("/a?limit[0=1", Ambiguous::BadName),
        ("/a?limit[]x=1", Ambiguous::BadName),
        ("/a?limit[[]]=1", Ambiguous::BadName),
        ("/a?limit[]]=1", Ambiguous::BadName),
        ("/a??key=1", Ambiguous::BadName),
        ("/a?%3Flimit=1", Ambiguous::BadName),
        ("/a?limit%00=1", Ambiguous::BadName),
        ("/a?x=1;key=2", Ambiguous::Semicolon),
        ("/a?api-version=1&api-version=2", Ambiguous::Repeated("api-version")),
    ] {
        let Ok(uri) = PathAndQuery::try_from(target) else { continue };
        let refused = Target::parse(&uri, "").map(|(target, _)| target);
        assert_eq!(refused, Err(why), "{target}");
    }
    let many = format!("/a?{}", vec!["x=1"; 201].join("&"));
    assert_eq!(parse(&many).map(|(target, _)| target), Err(Ambiguous::TooManyParameters));
    assert!(parse(&format!("/a?{}", vec!["x=1"; 200].join("&"))).is_ok());
}

#[test]
fn the_credential_is_taken_out_and_the_rest_stays_as_it_was() {
    for (target, rest, token, key) in [
        ("/a?key=metorial_pk_1", "/a", None, Some("metorial_pk_1")),
        ("/a?limit=2&key=k&after=x", "/a?limit=2&after=x", None, Some("k")),
        ("/a?token=t&key=k&&b", "/a?&b", Some("t"), Some("k")),
        ("/a?%6bey=k%5F1", "/a", None, Some("k_1")),
        ("/a?keys=1&tokens=2", "/a?keys=1&tokens=2", None, None),
    ] {
        let (parsed, extracted) = parse(target).expect("reads one way");
        assert_eq!(parsed.path_and_query().as_str(), rest, "{target}");
        assert_eq!(extracted.token.as_deref(), token.map(str::as_bytes), "{target}");
        assert_eq!(extracted.key.as_deref(), key.map(str::as_bytes), "{target}");
    }
    assert!(parse("/a?consumer_session_client_secret=x").expect("parsed").1.consumer_secret);
}

#[test]
fn the_base_path_is_removed_first_and_nothing_outside_it_is_served() {
    let parse = |target: &str| {
        Target::parse(&PathAndQuery::try_from(target).expect("a target"), "/api/metorial")
            .map(|(target, _)| target.path_and_query().to_string())
    };
    assert_eq!(parse("/api/metorial/providers?limit=1").as_deref(), Ok("/providers?limit=1"));
    assert_eq!(parse("/api/metorial").as_deref(), Ok("/"));
    for outside in ["/providers", "/api/metorialx/providers", "/api", "/"] {
        assert_eq!(parse(outside), Err(Ambiguous::OutsideBasePath), "{outside}");
    }
}

#[test]
fn printing_a_target_shows_no_query() {
    assert_eq!(format!("{:?}", parse("/a?email=x").expect("parsed").0), "Target(/a)");
}

proptest! {
    /// What passes is forwarded unchanged but for the credential, and passes again.
    #[test]
    fn reading_twice_gives_the_same(path in "(/[a-z%.0-9A-F~/_-]{0,8}){1,4}", query in "[a-z=&%\\[\\]0-9+]{0,40}") {
        let Ok(uri) = PathAndQuery::try_from(format!("{path}?{query}")) else { return Ok(()) };
        if let Ok((target, extracted)) = Target::parse(&uri, "") {
            let again = Target::parse(target.path_and_query(), "").expect("still reads one way");
            prop_assert_eq!(&again.0, &target);
            prop_assert!(again.1.key.is_none() && again.1.token.is_none());
            if extracted.key.is_none() && extracted.token.is_none() {
                prop_assert_eq!(target.path_and_query(), &uri);
            }
        }
    }
}
