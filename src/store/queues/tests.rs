use super::*;

const BOUNDS: Bounds = Bounds { all: 100, per_client: 50 };

fn queue() -> Queue {
    Queue::new(Duration::from_secs(600), Arc::default())
}

/// Whether it is this place's turn by now.
async fn has_turn(place: &mut Place) -> bool {
    crate::time::timeout(Duration::ZERO, place.turn()).await.is_ok()
}

fn enter(queue: &Queue, client: u64) -> Place {
    queue.enter(ClientKey(client), Lane::Above, BOUNDS).expect("a place")
}

#[tokio::test(start_paused = true)]
async fn the_turn_goes_round_from_client_to_client() {
    let queue = queue();
    let first = enter(&queue, 1);
    let mut waiting: Vec<(u64, Place)> =
        [1, 1, 1, 2, 2, 3].into_iter().map(|client| (client, enter(&queue, client))).collect();
    drop(first);
    let mut served = Vec::new();
    while !waiting.is_empty() {
        for at in 0..waiting.len() {
            if has_turn(&mut waiting[at].1).await {
                served.push(waiting.remove(at).0);
                break;
            }
        }
    }
    assert_eq!(served, [1, 2, 3, 1, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_is_forgotten_with_or_without_the_turn() {
    let queue = queue();
    let first = enter(&queue, 1);
    let second = enter(&queue, 2);
    let mut third = enter(&queue, 3);
    drop(second);
    drop(first);
    assert!(has_turn(&mut third).await);
    drop(third);
    assert!(queue.is_empty());
    assert!(queue.above.is_forgotten());
    assert_eq!(queue.bell.listening.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_on_its_way_to_one_that_leaves_comes_to_the_next() {
    let queue = queue();
    let first = enter(&queue, 1);
    let second = enter(&queue, 2);
    let mut third = enter(&queue, 3);
    drop(first); // The turn is in the channel to the second now.
    drop(second);
    assert!(has_turn(&mut third).await);
}

#[tokio::test]
async fn queues_are_bounded_in_all_and_per_client() {
    let queue = queue();
    let bounds = Bounds { all: 3, per_client: 2 };
    let enter = |client| queue.enter(ClientKey(client), Lane::Above, bounds);
    let _places = [enter(1), enter(1)];
    assert!(enter(1).is_none());
    let _third = enter(2);
    assert!(enter(3).is_none());
}

#[tokio::test(start_paused = true)]
async fn those_below_their_share_do_not_wait_for_those_above() {
    let queue = queue();
    let _above = enter(&queue, 1);
    let mut below = queue.enter(ClientKey(2), Lane::Below, BOUNDS).expect("a place");
    assert!(has_turn(&mut below).await);
    assert_eq!((queue.ahead(ClientKey(3), Lane::Below), queue.ahead(ClientKey(3), Lane::Above)), (1, 2));
}

#[tokio::test]
async fn however_many_one_client_has_waiting_a_newcomer_has_one_of_them_before_it() {
    let queue = queue();
    let mut places: Vec<_> = (0..40).map(|_| enter(&queue, 1)).collect();
    places.push(enter(&queue, 2));
    assert_eq!(queue.ahead(ClientKey(3), Lane::Above), 2);
    assert_eq!(queue.ahead(ClientKey(2), Lane::Above), 1 + 2);
    assert_eq!(queue.ahead(ClientKey(1), Lane::Above), 40 + 1);
}
