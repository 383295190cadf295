/* Included by chroma_filter.c once per instruction set; NAMED(name) gives the functions their names. */

/* Absolute horizontal and vertical luma gradients, into two buffers of the planes' size. Outermost rows and columns are
 * not written and stay 0.
 */
static void NAMED(find_slopes)(const Planes *p, float *across, float *down) {
    for (int y = 1; y < p->rows - 1; y++)
        for (ptrdiff_t x = LANES; x < p->stride - LANES; x += LANES) {
            const ptrdiff_t at = y * p->stride + x;
            store(across + at, magnitude(load(p->luma + at + 1) - load(p->luma + at - 1)));
            store(down + at, magnitude(load(p->luma + at + p->stride) - load(p->luma + at - p->stride)));
        }
}

/* 1 / (1 + DOUBT · gradient), with gradients averaged over 3 rows and 2 · reach + 1 (horizontal) or 3 columns (vertical). */
static void NAMED(find_confidence)(const Planes *p, const float *across, const float *down, int reach) {
    const float share = 1.0f / (3 * (2 * reach + 1)), share_down = SLOPE_DOWN / 9;
    for (int y = 1; y < p->rows - 1; y++) {
        const ptrdiff_t row = y * p->stride, above = row - p->stride, below = row + p->stride;
        for (ptrdiff_t x = 0; x < p->stride; x += LANES)
            store(p->sums + x, load(across + above + x) + load(across + row + x) + load(across + below + x));
        for (ptrdiff_t x = p->first; x < p->stride - p->first; x += LANES) {
            Floats wide = {0}, narrow = {0};
            for (int dx = -reach; dx <= reach; dx++) wide += load(p->sums + x + dx);
            for (int dx = -1; dx <= 1; dx++)
                narrow += load(down + above + x + dx) + load(down + row + x + dx) + load(down + below + x + dx);
            store(p->confidence + row + x, 1.0f / (1.0f + DOUBT * (share * wide + share_down * narrow)));
        }
    }
}

/* One row of filtered chroma; its length is the picture's width rounded up to complete vectors. */
static void NAMED(filter_row)(const Planes *p, const Tap *taps, int y, float *u, float *v) {
    const float falloff = 1 / (RANGE * RANGE);
    for (int x = 0; x < p->width; x += LANES) {
        const ptrdiff_t here = (y + p->border_y) * p->stride + p->border_x + x;
        const Floats middle = load(p->luma + here);
        Floats sum_u = {0}, sum_v = {0}, sum = {0};
        for (int i = 0; i < TAPS; i++) {
            const ptrdiff_t there = here + taps[i].offset;
            const Floats away = load(p->luma + there) - middle;
            const Floats root = taps[i].root * positive(1.0f - falloff * away * away);
            const Floats weight = root * root;
            sum_u += weight * load(p->u + there);
            sum_v += weight * load(p->v + there);
            sum += weight * load(p->confidence + there);
        }
        store(u + x, sum_u / sum);
        store(v + x, sum_v / sum);
    }
}
