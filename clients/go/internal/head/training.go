package head

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math"
	"slices"
	"strconv"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/task"
)

// The arithmetic is that of fedtask/brain_mri_head/training.py: float64 from the first step to the last. Products are
// converted before they are added, since a compiler may fuse the two otherwise, and machines would differ.

const (
	beta1   = 0.9
	beta2   = 0.999
	epsilon = 1e-7 // to which a probability may come near to 0 or 1 in a loss
)

// A head has its weights as float64, the bias last, with Adam's state beside them.
type head struct {
	weights     []float64
	adamEpsilon float64
	m, v        []float64
	gradient    []float64
	steps       int
}

func newHead(base map[string][]byte, adamEpsilon float64) *head {
	var weights []float64
	for _, value := range codec.Floats(append(slices.Clone(base[kernelName]), base[biasName]...)) {
		weights = append(weights, float64(value))
	}
	state := func() []float64 { return make([]float64, len(weights)) }
	return &head{weights: weights, adamEpsilon: adamEpsilon, m: state(), v: state(), gradient: state()}
}

// probability is that of label 1.
func (h *head) probability(row []float32) float64 {
	logit := h.weights[len(row)]
	for i, x := range row {
		logit += float64(float64(x) * h.weights[i])
	}
	return 0.5 * (1 + math.Tanh(0.5*logit)) // exp would overflow
}

// sums are over the examples of an epoch or a set.
type sums struct {
	loss float64
	hits int
	num  int
}

func (s *sums) judge(p float64, label uint8) {
	clipped := min(max(p, epsilon), 1-epsilon)
	if label == 1 {
		s.loss -= math.Log(clipped)
	} else {
		s.loss -= math.Log1p(-clipped)
	}
	if (p > 0.5) == (label == 1) {
		s.hits++
	}
	s.num++
}

func (s *sums) metrics(prefix string) task.Metrics {
	metrics := task.Metrics{prefix + "loss": nil, prefix + "accuracy": nil}
	if s.num > 0 {
		loss, accuracy := s.loss/float64(s.num), float64(s.hits)/float64(s.num)
		metrics[prefix+"loss"], metrics[prefix+"accuracy"] = &loss, &accuracy
	}
	return metrics
}

func (h *head) scores(set examples, prefix string) task.Metrics {
	var sums sums
	for i, label := range set.y {
		sums.judge(h.probability(set.row(i)), label)
	}
	return sums.metrics(prefix)
}

func (h *head) epoch(
	ctx context.Context, set examples, plan task.Plan, labelWeights [2]float64, epoch uint32, report func(task.Progress),
) (task.Metrics, error) {
	var sums sums
	parts := batches(epochOrder(plan.Seed, epoch, set.num()), int(plan.BatchSize))
	for done, batch := range parts {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		h.step(set, batch, labelWeights, plan.LearningRate, &sums)
		share := (float32(epoch-1) + float32(done+1)/float32(len(parts))) / float32(plan.Epochs)
		report(task.Progress{Epoch: epoch, Epochs: plan.Epochs, Fraction: share})
	}
	return sums.metrics(""), nil
}

// step makes one step of Adam on the batch.
func (h *head) step(set examples, batch []int, labelWeights [2]float64, learningRate float64, sums *sums) {
	clear(h.gradient)
	for _, i := range batch {
		row, label := set.row(i), set.y[i]
		p := h.probability(row)
		err := (p - float64(label)) * labelWeights[label] / float64(len(batch))
		for at, x := range row {
			h.gradient[at] += float64(err * float64(x))
		}
		h.gradient[set.width] += err
		sums.judge(p, label)
	}
	h.steps++
	rate := learningRate * math.Sqrt(1-math.Pow(beta2, float64(h.steps))) / (1 - math.Pow(beta1, float64(h.steps)))
	for at, g := range h.gradient {
		h.m[at] += float64((1 - beta1) * (g - h.m[at]))
		h.v[at] += float64((1 - beta2) * float64(float64(g*g)-h.v[at]))
		h.weights[at] -= float64(rate * h.m[at] / (math.Sqrt(h.v[at]) + h.adamEpsilon))
	}
}

// epochOrder is the order of the examples in an epoch: by the SHA-256 of the text `SEED EPOCH INDEX`.
func epochOrder(seed uint64, epoch uint32, num int) []int {
	type keyed struct {
		key   [sha256.Size]byte
		index int
	}
	prefix := strconv.FormatUint(seed, 10) + " " + strconv.FormatUint(uint64(epoch), 10) + " "
	all := make([]keyed, num)
	for i := range all {
		all[i] = keyed{sha256.Sum256([]byte(prefix + strconv.Itoa(i))), i}
	}
	slices.SortFunc(all, func(a, b keyed) int { return bytes.Compare(a.key[:], b.key[:]) })
	order := make([]int, num)
	for i, one := range all {
		order[i] = one.index
	}
	return order
}

// batches cuts the order into parts of nearly equal size, of which the first are longer by one.
func batches(order []int, batchSize int) [][]int {
	count := (len(order)-1)/batchSize + 1
	size, longer := len(order)/count, len(order)%count
	parts := make([][]int, count)
	for i := range parts {
		end := size
		if i < longer {
			end++
		}
		parts[i], order = order[:end], order[end:]
	}
	return parts
}

// balanced gives weights by label with which both classes have the same total.
func balanced(y []uint8) [2]float64 {
	var counts [2]int
	for _, label := range y {
		counts[label]++
	}
	present := 0
	for _, count := range counts {
		present += min(count, 1)
	}
	var weights [2]float64
	for label, count := range counts {
		if count > 0 {
			weights[label] = float64(len(y)) / (float64(present) * float64(count))
		}
	}
	return weights
}
